"""Give an upscaled image the colours of its source, as StableSR's and OSEDiff's scripts do after inference.

Source: OSEDiff's released `my_utils/wavelet_color_fix.py`, which truncates to 8 bits on the way in and out. This,
rounded once, is half a grey level brighter on average; it differs by up to two, or more where `adain` widens contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from qartsr_lib.base.errors import QartsrError

EPSILON = 1e-5  # added to adain's variances
LEVELS = 5  # of wavelet's blurs


def adain(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`image` with the mean and standard deviation of `source`, channel by channel, clamped to [0, 1].

    Both (N, 3, H, W) in [0, 1]; their sizes may differ.
    """
    (variance, mean), (wanted, wanted_mean) = (torch.var_mean(x, dim=(2, 3), keepdim=True) for x in (image, source))
    return ((image - mean) / (variance + EPSILON).sqrt() * (wanted + EPSILON).sqrt() + wanted_mean).clamp(0, 1)


def wavelet(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The fine structure of `image` on the coarse colours of `source`, both (N, 3, H, W), clamped to [0, 1]."""
    return (image - coarse(image) + coarse(source)).clamp(0, 1)


def coarse(image: torch.Tensor) -> torch.Tensor:
    """What is left after LEVELS blurs by [1 2 1]/4 x [1 2 1]/4, their taps 1, 2, 4, ... pixels apart."""
    row = torch.tensor([1.0, 2.0, 1.0], device=image.device, dtype=image.dtype) / 4
    kernel = (row[:, None] * row).expand(image.shape[1], 1, 3, 3)
    for level in range(LEVELS):
        padded = F.pad(image, [2**level] * 4, mode="replicate")
        image = F.conv2d(padded, kernel, dilation=2**level, groups=image.shape[1])
    return image


COLOUR_FIXES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "none": lambda image, source: image,
    "adain": adain,
    "wavelet": wavelet,
}


def colour_fix(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The colour fix called `name`, a function of (image, source); a QartsrError for an unknown one."""
    if name not in COLOUR_FIXES:
        raise QartsrError(f"unknown colour fix {name!r}; choose one of {', '.join(COLOUR_FIXES)}")
    return COLOUR_FIXES[name]
