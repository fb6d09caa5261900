"""Parts of photographs as files: their centre, so that a sweep measures many images, or all that divides by four."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets.base import SCALE, Pair
from qartsr_lib.images.image import central_crop, read_image, write_png


def central_pairs(pairs: list[Pair], side: int | None) -> list[Pair]:
    """Pairs of at most `side` x `side` HR pixels: larger ones are cropped at their centre, never resized.

    The crops are PNG files in the untracked cache, named by what they were made from.

    Args:
        side: in HR pixels, a multiple of SCALE; None leaves everything whole.

    Raises:
        QartsrError: `side` is no positive multiple of SCALE, or an image cannot be read.
    """
    if side is None:
        return list(pairs)
    if side < SCALE or side % SCALE:
        raise QartsrError(f"max_side is {side}; choose a positive multiple of {SCALE}, or None for whole images")
    return [
        Pair(pair.id, central_file(pair.lq, side // SCALE), central_file(pair.hr, side, multiple=SCALE))
        for pair in pairs
    ]


def central_file(path: Path, side: int, multiple: int = 1) -> Path:
    """A file with the central `side` x `side` pixels of an image; `path` itself where it is no larger.

    Args:
        multiple: the crop begins at a multiple of it, so that LQ and HR show the same part.
    """
    made_from = f"{remembered_sha256(path)} {side} {multiple}"
    name = f"{path.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.png"
    target = paths.cache_dir() / "datasets" / "central" / name
    if target.is_file():
        return target
    image = read_image(path)
    part = central_crop(image, side, multiple)
    return path if part.shape == image.shape else write_png(target, part)


def divisible_file(path: Path) -> Path:
    """A file with the largest part from the top left whose sides divide by SCALE; its stem stays (BasicSR's mod_crop).

    Raises:
        QartsrError: the image cannot be read, or is smaller than SCALE.
    """
    made_from = hashlib.sha256(f"{remembered_sha256(path)} {SCALE}".encode()).hexdigest()[:12]
    target = paths.cache_dir() / "datasets" / "divisible" / made_from / f"{path.stem}.png"
    if target.is_file():
        return target
    image = read_image(path)
    height, width = (side // SCALE * SCALE for side in image.shape[-2:])
    if not height or not width:
        raise QartsrError(f"{path}: is smaller than {SCALE} pixels; remove it")
    return write_png(target, image[..., :height, :width])
