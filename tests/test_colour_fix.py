"""adain and wavelet against plain numpy."""

import numpy as np
import pytest
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.colour_fix import adain, coarse, colour_fix, wavelet


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    return generator.random((2, 3, 40, 36)) * 0.5, generator.random((2, 3, 40, 36)) * 0.3 + 0.2


def torched(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def numpy_coarse(channel):
    """Five blurs by [1 2 1; 2 4 2; 1 2 1] / 16, taps 1, 2, 4, 8, 16 apart, edges repeated."""
    for distance in (1, 2, 4, 8, 16):
        padded = np.pad(channel, distance, mode="edge")
        height, width = channel.shape
        total = np.zeros_like(channel)
        for row, first in ((0, 1), (1, 2), (2, 1)):
            for column, second in ((0, 1), (1, 2), (2, 1)):
                top, left = row * distance, column * distance
                total += first * second / 16 * padded[top : top + height, left : left + width]
        channel = total
    return channel


def test_adain(pair):
    image, source = pair
    expected = np.empty_like(image)
    for index in np.ndindex(2, 3):
        x, y = image[index], source[index]
        deviations = [np.sqrt(z.var(ddof=1) + 1e-5) for z in (x, y)]
        expected[index] = (x - x.mean()) / deviations[0] * deviations[1] + y.mean()
    assert np.allclose(adain(*torched(image, source)).numpy(), expected.clip(0, 1), rtol=0, atol=1e-12)


def test_wavelet(pair):
    image, source = pair
    expected = np.empty_like(image)
    for index in np.ndindex(2, 3):
        expected[index] = image[index] - numpy_coarse(image[index]) + numpy_coarse(source[index])
    assert np.allclose(wavelet(*torched(image, source)).numpy(), expected.clip(0, 1), rtol=0, atol=1e-12)


def test_fixing_an_image_by_itself_changes_nothing(pair):
    (image,) = torched(pair[0])
    assert torch.allclose(adain(image, image), image) and torch.allclose(wavelet(image, image), image)
    assert torch.allclose(coarse(torch.full((1, 3, 40, 40), 0.3)), torch.tensor(0.3))


def test_results_stay_in_range_and_names_are_checked(pair):
    image, source = torched(*pair)
    for name in ("none", "adain", "wavelet"):
        fixed = colour_fix(name)(image, source * 3)
        assert fixed.shape == image.shape and float(fixed.min()) >= 0 and float(fixed.max()) <= 1
    with pytest.raises(QartsrError, match="unknown colour fix 'adian'; choose one of none, adain, wavelet"):
        colour_fix("adian")


@pytest.mark.parametrize("fix", [adain, wavelet])
def test_distance_from_the_script_that_truncates_twice(pair, fix):
    """The released script's 8-bit conversions, x255 and cut off, before and after: what the module's text says."""

    def truncated(image):
        return torch.floor(image * 255)

    image, source = torched(pair[0], np.round(pair[1] * 255) / 255)
    released = truncated(fix(truncated(image) / 255, source))
    difference = (fix(image, source) * 255).round() - released
    assert difference.min() >= -1 and 1 <= difference.max() <= 2
    assert float(difference.mean()) == pytest.approx(0.5, abs=0.15)
