"""Training batches cut from photographs: a pure function of (seed, step), so that training can resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import from_uint8, read_image, resize_bicubic, to_uint8, upscale_bicubic

CROP = 64
REALISTIC_SHARE = 0.25  # of the crops, degraded by the second-order pipeline; the rest bicubic
#: Photographs are also offered shrunk: smaller copies are sharper and carry finer structure.
SHRINK_FACTORS = (1.0, 0.8, 0.6)


class Crops:
    """Random square HR crops of side `size`, a multiple of 16, with their degraded, bicubic-upscaled counterparts.

    Images smaller than `size` are left out; a QartsrError where none is left.
    """

    def __init__(self, paths: Sequence[Path], size: int = CROP) -> None:
        self.size, self._images = size, []
        for path in progress(paths, "reading photographs"):
            image = read_image(path)
            for factor in SHRINK_FACTORS:
                height, width = (round(side * factor) for side in image.shape[-2:])
                if min(height, width) >= size:
                    self._images.append(to_uint8(image if factor == 1.0 else resize_bicubic(image, height, width)))
        if not self._images:
            raise QartsrError(f"no image is at least {size}x{size} pixels; name a folder with larger images")

    def hr(self, count: int, seed: int, step: int) -> torch.Tensor:
        """`count` HR crops, randomly flipped and turned: (count, 3, size, size) in [0, 1]."""
        rng = np.random.default_rng((seed, step))
        return torch.cat([from_uint8(self._crop(rng)) for _ in range(count)])

    def pairs(self, count: int, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` pairs (HR crop, upscaled LQ crop), both (count, 3, size, size) in [0, 1]."""
        hr = self.hr(count, seed, step)
        rng, lq = np.random.default_rng((seed, step, 1)), []
        for crop in hr:
            kind = "realistic" if rng.random() < REALISTIC_SHARE else "bicubic"
            lq.append(degrade(crop[None], kind, int(rng.integers(2**31))))
        return hr, upscale_bicubic(torch.cat(lq))

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        image = self._images[rng.integers(len(self._images))]
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        crop = np.rot90(image[top : top + self.size, left : left + self.size], int(rng.integers(4)))
        return crop[:, ::-1] if rng.random() < 0.5 else crop
