"""What is wrong with calibration crops that can still be used: a line each, told before a long calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FEW = 16  # crops below which ranges rest on chance
FLAT = 2 / 255  # standard deviation of a crop in which there is nothing to see
KINDS = 0.1  # share of crops FAR from the others at which they are another kind of image; photographs have up to 0.05
FAR = 6.0  # times the median distance to the median, in brightness or in the logarithm of contrast


def warnings_about(images: Sequence[torch.Tensor], n_files: int) -> list[str]:
    """One line for each of: few crops or files, crops of one colour, equal crops, crops unlike all others.

    Args:
        images: crops, (1, 3, h, w) in [0, 1].
        n_files: how many image files they come from.
    """
    count, lines = len(images), []
    if min(count, n_files) < FEW:
        lines.append(f"{count} crops of {n_files} images are few; {FEW} of different images or more calibrate better")
    contrast = torch.stack([image.std() for image in images])
    if flat := int((contrast < FLAT).sum()):
        lines.append(f"{flat} of {count} crops are nearly of one colour and add nothing; leave such images out")
    different = len({image.numpy().tobytes() for image in images})
    if different < count:
        lines.append(f"{count - different} of {count} crops are repetitions; give more images, or fewer --crops")
    brightness = torch.stack([image.mean() for image in images])
    seen = contrast >= FLAT
    far = int((_far(brightness[seen], FLAT) | _far(contrast[seen].log(), 0.1)).sum())
    if far > KINDS * count:
        kinds = "are far darker, brighter, flatter or harsher than the others"
        lines.append(f"{far} of {count} crops {kinds}; quantize for one kind of image at a time")
    return lines


def _far(values: torch.Tensor, least: float) -> torch.Tensor:
    """Which of `values` lie FAR from the median; distances below `least` count as `least`."""
    if not len(values):
        return torch.zeros(0, dtype=torch.bool)
    distance = (values - values.median()).abs()
    return distance > FAR * distance.median().clamp(min=least)
