"""Calibration images as batches of equal size."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def batches_of(images: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    """Join images (1, 3, h, w) of equal size to batches (up to `size`, 3, h, w), the order kept within a size."""
    by_shape: dict[torch.Size, list[torch.Tensor]] = {}
    for image in images:
        by_shape.setdefault(image.shape, []).append(image)
    return [torch.cat(same[i : i + size]) for same in by_shape.values() for i in range(0, len(same), size)]
