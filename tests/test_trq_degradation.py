"""OSEDiff's degradation step by step in closed form, and as a whole by numbers measured on the released code.

The released code is OSEDiff's dataloaders/realesrgan.py at fcc4f09c with BasicSR's degradations.py, diffjpeg.py and
img_process_util.py.
"""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import convolve

from qartsr_lib.training.trq import degradation
from qartsr_lib.training.trq.degradation import FIRST, SECOND, degraded, jpeg


def ramp(side=256):
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    return torch.from_numpy(np.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.2 + 0.3 * x + 0.3 * y])[None]).float()


def test_strength_on_a_ramp_is_the_released_ones():
    """Standard deviation from the best plane in grey levels over 600 draws of the released code, 256x256, enlarged."""
    y, x = np.mgrid[0:256, 0:256]
    plane = np.stack([np.ones(256 * 256), x.ravel(), y.ravel()], axis=1)
    plane, _ = np.linalg.qr(plane)
    left = []
    for seed in range(60):
        pixels = degraded(ramp(), np.random.default_rng(seed))[0].reshape(3, -1).double().numpy().T * 255
        left.append((pixels - plane @ (plane.T @ pixels)).std())
    for share, measured in ((0.1, 3.49), (0.5, 7.65), (0.9, 14.56)):
        assert np.quantile(left, share) == pytest.approx(measured, rel=0.25), share  # 3.65 at the median before


def test_resizes_are_absolute_and_not_antialiased(monkeypatch):
    calls, resize = [], F.interpolate

    def spy(image, size=None, **options):
        calls.append((size, options))
        return resize(image, size, **options)

    monkeypatch.setattr(F, "interpolate", spy)
    for seed in range(120):
        lq = degraded(ramp(64), np.random.default_rng(seed))
        assert lq.shape == (1, 3, 64, 64) and float(lq.min()) >= 0 and float(lq.max()) <= 1
        assert torch.allclose(lq * 255, (lq * 255).round(), atol=1e-4)
    modes = [options.pop("mode") for _, options in calls]
    assert all(160 - 40 < modes.count(mode) < 160 + 40 for mode in ("area", "bilinear", "bicubic"))
    first, second, third, fourth = (calls[start::4] for start in range(4))
    factors = np.array([options.pop("scale_factor") for _, options in first])
    assert all(options == {} for _, options in calls)  # no antialias, no clamp by another call
    assert all(list(size) == [16, 16] for size, _ in third) and all(tuple(size) == (64, 64) for size, _ in fourth)
    sides = np.array([size[0] for size, _ in second])
    # whatever the first one left (0.15 .. 1.5 of 64), the second lands between 0.3 and 1.2 of 64 / 4
    assert sides.min() in (4, 5) and sides.max() in (18, 19)
    for found, low, high, up, keep in ((factors, 0.15, 1.5, 0.2, 0.1), (sides / 16, 0.25, 1.2, 0.24, 0.38)):
        assert found.min() >= low and found.max() <= high
        assert (found > 1).mean() == pytest.approx(up, abs=0.13)
        assert (found == 1).mean() == pytest.approx(keep, abs=0.13)  # 15/16 < factor: kept or no whole pixel more


def test_blur_kernels_are_of_the_released_kinds():
    rng = np.random.default_rng(0)
    for stage, widest in ((FIRST, 3.0), (SECOND, 1.5)):
        kernels = [degradation._kernel(stage, rng).numpy() for _ in range(1500)]
        assert all(kernel.sum() == pytest.approx(1) and kernel.shape[0] == kernel.shape[1] for kernel in kernels)
        sizes = np.array([len(kernel) for kernel in kernels])
        assert set(sizes) == set(range(7, 22, 2)) and (sizes == 7).mean() == pytest.approx(1 / 8, abs=0.03)
        sinc = np.array([kernel.min() < 0 for kernel in kernels])
        assert sinc.mean() == pytest.approx(0.1, abs=0.03)
        blurs = [kernel for kernel, rings in zip(kernels, sinc, strict=True) if not rings]
        isotropic = np.mean([np.allclose(kernel, np.rot90(kernel), atol=1e-9) for kernel in blurs])
        assert isotropic == pytest.approx(0.45 + 0.12 + 0.12, abs=0.05)
        # a plain Gaussian is a product of two; those are most of the isotropic ones
        plain = [kernel for kernel in blurs if np.allclose(kernel, np.outer(kernel.sum(1), kernel.sum(0)), atol=1e-9)]
        assert 0.4 < len(plain) / len(blurs) < 0.56
        ratios = [kernel[len(kernel) // 2, len(kernel) // 2 + 1] / kernel.max() for kernel in plain]
        sigmas = [(-0.5 / np.log(ratio)) ** 0.5 for ratio in ratios if ratio > 0]
        assert max(sigmas) == pytest.approx(widest, rel=0.02) and np.median(sigmas) > 0.4 * widest


def test_filter_mirrors_edges_and_keeps_what_leaves_the_range():
    rng = np.random.default_rng(1)
    image, kernel = rng.random((3, 30, 24)), degradation.sinc_kernel(10, 2.0)
    expected = np.stack([convolve(channel, kernel.numpy(), mode="mirror") for channel in image])
    found = degradation._filter(torch.from_numpy(image[None]), kernel)[0].numpy()
    assert np.allclose(found, expected) and (found.min() < 0 or found.max() > 1)


class Fixed:
    """A random generator whose uniform draws are given."""

    def __init__(self, *draws):
        self.draws, self.generator = list(draws), np.random.default_rng(2)

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        return low + (high - low) * self.draws.pop(0)

    def __getattr__(self, name):
        return getattr(self.generator, name)


@pytest.mark.parametrize(("grey", "draw"), [(False, 0.9), (True, 0.1)])
def test_noise_of_both_kinds(grey, draw):
    image = torch.full((1, 3, 400, 400), 0.5)
    noise = (degradation._noise(image, FIRST, Fixed(draw, 0.1, 1.0)) - image)[0].double().numpy() * 255
    assert noise.std() == pytest.approx(30, rel=0.02)  # the upper end of params_realesrgan.yml
    assert (np.corrcoef(noise.reshape(3, -1))[0, 1] > 0.99) == grey
    # 2 levels make 2 photons at white, so the variance is level / 2, times 0.1^2 lest anything be clipped
    image[..., :200] = 0.4
    scale = (0.1 - 0.05) / (3.0 - 0.05)
    noise = (degradation._noise(image, FIRST, Fixed(draw, 0.9, scale)) - image)[0].double().numpy()
    levels = [round(level * 255) / 255 for level in (0.4, 0.5)]
    for part, level in zip((noise[..., :200], noise[..., 200:]), levels, strict=True):
        assert part.std() == pytest.approx(0.1 * (level / 2) ** 0.5, rel=0.03)
        assert len(np.unique(part.round(6))) < 12  # whole photons, not a normal distribution
    assert (np.corrcoef(noise.reshape(3, -1))[0, 1] > 0.99) == grey


@pytest.mark.parametrize("quality", [50, 25])
def test_jpeg_is_the_standards_with_the_table_of_luminance_transposed(quality):
    """Pillow's of the transposed image: grey has no colours, and at these qualities its tables are the same numbers."""
    y, x = np.mgrid[0:64, 0:64]
    levels = (127 + 50 * np.sin(x / 3) * np.sin(y / 5) + 25 * np.sin((x + 2 * y) / 2)).round().astype(np.uint8)
    image = torch.from_numpy(levels / 255.0)[None, None].expand(1, 3, -1, -1).float()

    def pillows(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="JPEG", quality=quality)
        return np.asarray(Image.open(buffer)).astype(float)

    ours = jpeg(image, float(quality))[0].numpy() * 255
    as_released, as_in_the_standard = (
        np.abs(ours - theirs).mean() for theirs in (pillows(levels.T.copy()).T, pillows(levels))
    )
    # rounding to 8 bits costs a quarter of a level, a tie in a coefficient a little more
    assert as_released < 0.45 and as_in_the_standard > 2


def test_jpeg_of_colours_and_odd_sizes():
    image, plain = ramp(64)[..., :37, :51], torch.full((1, 3, 16, 16), 0.3)
    assert jpeg(image, 70.5).shape == image.shape and float((jpeg(image, 95.0) - image).abs().mean()) < 0.01
    assert not torch.equal(jpeg(image, 70.0), jpeg(image, 70.4))  # any float, not whole numbers
    plain[:, 0, :8, ::2] = 0.5  # colour has half the resolution: stripes of red keep their brightness alone
    stripes = jpeg(plain, 99.9)[0, :, :8].mean(dim=1)
    assert float((stripes[0, ::2] - stripes[0, 1::2]).mean()) == pytest.approx(0.2 * 0.299, abs=0.01)


def test_smallest_crop_and_repeatability():
    for seed in range(20):
        one, other = (degraded(ramp(8), np.random.default_rng(seed)) for _ in range(2))
        assert one.shape == (1, 3, 8, 8) and torch.equal(one, other)
