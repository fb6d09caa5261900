"""The faster forms of slow metrics give pyiqa's own numbers."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import skimage.data
import torch

from qartsr_lib.images import metrics
from qartsr_lib.images.image import from_uint8, to_uint8
from qartsr_lib.images.metrics import iqa, quicker

REMEMBERED = ["LPIPS", "DISTS", "FSIM", "VIF"]
#: Prints the values, a line for each of the names, that pyiqa's metrics have where nothing was made faster.
PLAIN = """
import sys, torch, pyiqa
from qartsr_lib.images.metrics import METRICS, iqa, weights
iqa.quicker.quicken = iqa.quicker.quicken_modules = lambda *_: None
file, *names = sys.argv[1:]
torch.set_num_threads(1)
for spec in map(METRICS.get, names):
    compute = spec.build({file.name: weights.obtain(file, None) for file in spec.weights})
    print(*(compute(*pair).hex() for pair in torch.load(file)))
"""


pytestmark = pytest.mark.usefixtures("metrics_forgotten")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two photographs of 208 x 200 and 200 x 230 pixels, each with three spoiled copies of it."""
    photographs = [from_uint8(skimage.data.astronaut()[:200, 100:308]), from_uint8(skimage.data.chelsea()[:230, :200])]
    noise = [torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) for image in photographs]
    spoiled = [
        (torch.nn.functional.avg_pool2d(image, 5, 1, 2), (image * 8).round() / 8, image + 0.1 * rough)
        for image, rough in zip(photographs, noise, strict=True)
    ]
    copies = zip(photographs, spoiled, strict=True)
    return [(from_uint8(to_uint8(sr)), image) for image, found in copies for sr in found]


def test_values_are_pyiqas_own(tmp_path, pairs, threads):
    """Each twice and in another order the second time, so that all that is remembered is used."""
    names = [name for name, missing in metrics.available(REMEMBERED).items() if not missing]
    torch.save(pairs, tmp_path / "pairs.pt")
    words = [sys.executable, "-c", PLAIN, str(tmp_path / "pairs.pt"), *names]
    plain = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert plain.returncode == 0, plain.stderr
    for name, line in zip(names, plain.stdout.splitlines(), strict=True):
        wanted = [float.fromhex(value) for value in line.split()]
        with threads(1):
            compute, _ = metrics._load(name, None)
            found = [compute(sr.clone(), image.clone()) for sr, image in pairs]
            assert [compute(*pair) for pair in reversed(pairs)] == found[::-1], name
        assert len(set(found)) == len(pairs), name
        # DISTS' convolutions are others.
        assert found == (pytest.approx(wanted, rel=1e-6) if name == "DISTS" else wanted), name


def test_the_fast_window_filter_equals_the_direct_one():
    from pyiqa.matlab_utils import filter2

    generator = torch.Generator().manual_seed(3)
    image = 255 * torch.rand(2, 1, 40, 53, generator=generator, dtype=torch.float64)
    window = torch.rand(1, 1, 11, 7, generator=generator, dtype=torch.float64)  # not symmetric
    fast = quicker.by_fft(filter2)(image, window, "valid")
    torch.testing.assert_close(fast, filter2(image, window, "valid"), rtol=1e-12, atol=1e-8)
    iqa._pyiqa()
    from pyiqa.archs import ssim_arch

    assert ssim_arch.filter2 is not filter2  # it is the one that SSIM uses


def test_dists_keeps_the_features_of_small_references_and_the_value(monkeypatch):
    calls = []

    class Network:
        def forward_once(self, image):
            calls.append(image)
            return [image.square()]

        def forward(self, image, reference):
            return float((self.forward_once(image)[0] - self.forward_once(reference)[0]).sum())

    network, plain = Network(), Network()
    quicker.remember_references(network)
    images = torch.rand(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = [plain.forward(image, reference) for image in images for reference in images]
    calls.clear()
    found = [network.forward(image, reference.clone()) for image in images for reference in images]
    assert found == wanted
    assert len(calls) == 9 + 3, "each reference once"
    monkeypatch.setattr(quicker, "KEPT_VALUES", 100)
    assert network.forward(images[0], images[1]) == wanted[1] and len(calls) == 9 + 3 + 2, "too large to be kept"


def test_results_are_kept_by_value_and_layout_and_the_oldest_goes(monkeypatch):
    calls = []
    double = quicker.Remembering(lambda x, by=2: calls.append(by) or x * by, kept=2)
    images = torch.rand(3, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    first = double(images[0])
    assert double(images[0].clone()) is first and len(calls) == 1
    assert torch.equal(double(images[0], by=3), 3 * images[0]) and len(calls) == 2
    double(images[0].contiguous(memory_format=torch.channels_last))
    assert len(calls) == 3, "another layout is another entry"
    double(images[0])
    assert len(calls) == 4, "the oldest was dropped"
    monkeypatch.setattr(quicker, "KEPT_VALUES", 10)
    assert torch.equal(double(images[0]), 2 * images[0]) and len(calls) == 5


def test_winograds_convolutions_equal_the_direct_ones_and_only_where_they_may(monkeypatch):
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1, stride=2),
        torch.nn.Conv2d(8, 4, 5),
        torch.nn.Conv2d(4, 4, 3, bias=False),
    ]
    plain = torch.nn.Sequential(*layers).requires_grad_(False)
    quick = copy.deepcopy(plain)
    quicker.quick_convolutions(quick)
    image = torch.rand(1, 3, 37, 41)
    for layout in (torch.contiguous_format, torch.channels_last):
        wanted = plain.double()(image.double())
        plain.float()
        torch.testing.assert_close(quick(image.contiguous(memory_format=layout)).double(), wanted, rtol=1e-5, atol=1e-5)
    if torch._nnpack_available():
        assert ["forward" in vars(layer) for layer in quick] == [True, False, False, True]
        small = quick(image)
        assert not torch.equal(small, plain(image)), "the last bits differ"
        monkeypatch.setattr(quicker, "QUICK_VALUES", 100)
        assert torch.equal(quick(image), plain(image)), "too large"


@pytest.mark.parametrize(("side", "window"), [(30, 3), (33, 5), (24, 9)])
def test_window_sums_are_those_that_vif_picks_out_of_all(side, window):
    import numpy as np

    image = torch.rand(1, 1, side, side + 6, generator=torch.Generator().manual_seed(1))
    start, end = [1, 1], [side - 1, side + 5]
    around = (window - 1) // 2
    padded = np.pad(image[0, 0].double().numpy(), around, mode="reflect")
    sums = np.lib.stride_tricks.sliding_window_view(padded, (window, window)).sum((-2, -1))
    found = quicker.window_sums(None, image, np.ones((window, window)), 3, 1, start, end)
    np.testing.assert_allclose(found[0, 0].numpy(), sums[1 : end[0] : 3, 1 : end[1] : 3], rtol=1e-5)


def test_vae_fd_sees_each_reference_once(pairs, monkeypatch):
    from qartsr_lib.backbones.features import FeatureDistance

    seen, features = [], FeatureDistance.features
    monkeypatch.setattr(FeatureDistance, "features", lambda self, image: seen.append(1) or features(self, image))
    compute, _ = metrics._load("VAE-FD", None)
    found = [compute(sr, image.clone()) for sr, image in pairs]
    assert len(seen) == len(pairs) + 2, "two photographs"
    metrics.forget()
    alone = [metrics._load("VAE-FD", None)[0](*pair) for pair in pairs[::3]]
    assert found[::3] == alone
