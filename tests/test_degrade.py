"""Degradations: fixed by their seed, of the right size, and bicubic as Pillow's."""

import numpy as np
import pytest
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import degrade as module
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import from_uint8, resize_bicubic, to_uint8


@pytest.fixture
def hr():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["bicubic", "realistic"])
def test_shape_range_and_8_bit_levels(hr, kind):
    lq = degrade(hr, kind, seed=3)
    assert lq.shape == (1, 3, 16, 24)
    assert torch.equal(lq, from_uint8(to_uint8(lq)))


def test_bicubic_is_the_plain_resize(hr):
    assert torch.equal(degrade(hr, "bicubic", 0), from_uint8(to_uint8(resize_bicubic(hr, 16, 24))))


def test_realistic_depends_on_the_seed_alone(hr):
    torch.manual_seed(1)
    first = degrade(hr, "realistic", seed=7)
    torch.manual_seed(2)
    assert torch.equal(first, degrade(hr, "realistic", seed=7))
    assert not torch.equal(first, degrade(hr, "realistic", seed=8))


def test_realistic_is_what_the_committed_results_were_made_with():
    """Mean and deviation, recorded in grey levels: weights and calibration lists rest on every draw of it."""
    y, x = np.mgrid[0:64, 0:96] / 96
    hr = torch.from_numpy(np.stack([x, y, 0.5 + 0.4 * np.sin(40 * x) * np.sin(30 * y)])[None])
    found = [degrade(hr, "realistic", seed) * 255 for seed in range(8)]
    deviations = [54.47, 54.66, 55.33, 55.59, 58.15, 55.17, 55.61, 55.03]
    assert [float(lq.std()) for lq in found] == pytest.approx(deviations, abs=0.05)
    blues = [127.4, 127.71, 127.82, 127.61, 127.79, 127.43, 127.7, 127.38]
    assert [float(lq[:, 2].mean()) for lq in found] == pytest.approx(blues, abs=0.05)


def test_kernels_sum_to_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sinc = module.sinc_kernel(int(rng.integers(3, 11)), rng.uniform(np.pi / 3, np.pi))
        for kernel in (module._gaussian_kernel(module.REALISTIC[0], rng), sinc):
            assert float(kernel.sum()) == pytest.approx(1.0)
            assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1


def test_unknown_kind(hr):
    with pytest.raises(QartsrError, match="unknown degradation 'motion'"):
        degrade(hr, "motion", 0)
