"""Give an upscaled image the colours of its source, as StableSR's and OSEDiff's scripts do after inference.

Source: OSEDiff's released `my_utils/wavelet_color_fix.py`. It works on 8-bit images and truncates on
the way in and out; this, in floating point and rounded once, is half a grey level brighter on
average and differs by up to two, or more where `adain` widens the contrast of its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from qartsr_lib.base.errors import QartsrError

ADAIN_EPSILON = 1e-5  # added to the variance
WAVELET_LEVELS = 5

ColourFix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def adain(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`image` with the mean and standard deviation of `source`, channel by channel.

    Args:
        image, source: (N, 3, H, W) in [0, 1]; their sizes may differ.

    Returns:
        (N, 3, H, W) of `image`'s size, clamped to [0, 1].
    """
    (mean, deviation), (wanted_mean, wanted_deviation) = _statistics(image), _statistics(source)
    return ((image - mean) / deviation * wanted_deviation + wanted_mean).clamp(0, 1)


def _statistics(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sqrt(unbiased variance + ADAIN_EPSILON) of every channel, (N, C, 1, 1)."""
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True)
    return mean, (variance + ADAIN_EPSILON).sqrt()


def wavelet(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The fine structure of `image` on the coarse colours of `source`.

    Args:
        image, source: (N, 3, H, W) in [0, 1], of the same size.

    Returns:
        (N, 3, H, W), clamped to [0, 1].
    """
    return (image - coarse(image) + coarse(source)).clamp(0, 1)


def coarse(image: torch.Tensor) -> torch.Tensor:
    """What is left after WAVELET_LEVELS blurs by [1 2 1]/4 x [1 2 1]/4, their taps 1, 2, 4, ... pixels apart."""
    row = torch.tensor([1.0, 2.0, 1.0], device=image.device, dtype=image.dtype) / 4
    kernel = (row[:, None] * row).expand(image.shape[1], 1, 3, 3)
    for level in range(WAVELET_LEVELS):
        distance = 2**level
        padded = F.pad(image, [distance] * 4, mode="replicate")
        image = F.conv2d(padded, kernel, dilation=distance, groups=image.shape[1])
    return image


def _none(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return image


COLOUR_FIXES: dict[str, ColourFix] = {"none": _none, "adain": adain, "wavelet": wavelet}


def colour_fix(name: str) -> ColourFix:
    """The colour fix called `name`: function(image, source), both (N, 3, H, W) in [0, 1].

    Raises:
        QartsrError: unknown name.
    """
    if name not in COLOUR_FIXES:
        raise QartsrError(f"unknown colour fix {name!r}; choose one of {', '.join(COLOUR_FIXES)}")
    return COLOUR_FIXES[name]
