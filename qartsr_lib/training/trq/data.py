"""Training pairs as OSEDiff makes them: a random crop, mirrored half of the time, degraded as for Real-ESRGAN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import read_image
from qartsr_lib.training.trq.degradation import degraded


class DegradedCrops(Dataset):
    """Pairs (HR crop, degraded and upscaled crop), both (3, size, size) float32 in [0, 1].

    Pair number n depends on `seed` and n alone, so that an interrupted training continues with
    the pairs that it would have seen, on any number of processes. Images are read when needed.

    Args:
        paths: photographs; those with a side under `size` are left out.
        size: side of the crops, a multiple of 8.
        first, count: numbers of the pairs, first .. first + count - 1.

    Raises:
        QartsrError: no photograph is large enough, or one cannot be read.
    """

    def __init__(self, paths: Sequence[Path], size: int, seed: int, first: int, count: int) -> None:
        self.paths = [path for path in paths if min(_size(path)) >= size]
        if not self.paths:
            raise QartsrError(f"--images: no image is at least {size}x{size} pixels; name a folder with larger ones")
        self.size, self.seed, self.first, self.count = size, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self.seed, self.first + index))
        image = read_image(self.paths[rng.integers(len(self.paths))])
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[-2:])
        hr = image[..., top : top + self.size, left : left + self.size]
        hr = hr.flip(-1) if rng.random() < 0.5 else hr
        return hr[0].contiguous(), degraded(hr, rng)[0]


def _size(path: Path) -> tuple[int, int]:
    """From the header alone."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise QartsrError(f"{path}: not a readable image; replace or remove it") from error
