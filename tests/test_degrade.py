"""Degradations: fixed by their seed, of the right size, and bicubic as Pillow's."""

import numpy as np
import pytest
import torch

from qartsr_lib import degrade as module
from qartsr_lib.degrade import REAL_ESRGAN, REALISTIC, degrade, second_order
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import from_uint8, resize_bicubic, to_uint8


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


def test_full_strength_is_stronger(hr):
    smooth = resize_bicubic(resize_bicubic(hr, 8, 12), 64, 96)
    plain = degrade(smooth, "bicubic", 0)
    errors = {
        name: np.mean(
            [float((second_order(smooth, config, np.random.default_rng(s)) - plain).pow(2).mean()) for s in range(12)]
        )
        for name, config in (("mild", REALISTIC), ("full", REAL_ESRGAN))
    }
    assert errors["full"] > 1.5 * errors["mild"] > 0


@pytest.mark.parametrize("make", [module._gaussian_kernel, module._sinc_kernel])
def test_kernels_sum_to_one(make):
    rng = np.random.default_rng(0)
    for _ in range(20):
        arguments = ((0.2, 3.0), REAL_ESRGAN, rng) if make is module._gaussian_kernel else (REAL_ESRGAN, rng)
        kernel = make(*arguments)
        assert float(kernel.sum()) == pytest.approx(1.0)
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1


def test_unknown_kind(hr):
    with pytest.raises(QartsrError, match="unknown degradation 'motion'"):
        degrade(hr, "motion", 0)
