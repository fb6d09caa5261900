"""The pairs that a run measures, and parts of photographs as files: their centre, or all that divides by four."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import SCALE, Pair
from qartsr_lib.images.image import central_crop, read_image, write_png


def available_data(
    names: Sequence[str], data_root: Path | None, max_images: int | None = None, max_side: int | None = None
) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """({data set: checked pairs}, {data set: why it is absent}); for the limits see `Profile`.

    Raises:
        QartsrError: a data set is present but broken (the file is named), or none is present.
    """
    reasons = {name: DATASETS.get(name).available(data_root) for name in dict.fromkeys(names)}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    pairs = {name: DATASETS.get(name).pairs(data_root, max_images) for name in reasons if name not in skipped}
    if not pairs:
        raise QartsrError("no data set of this run is available: " + "; ".join(f"{n}: {r}" for n, r in skipped.items()))
    return {name: central_pairs(found, max_side) for name, found in pairs.items()}, skipped


def central_pairs(pairs: list[Pair], side: int | None) -> list[Pair]:
    """Pairs of at most `side` x `side` HR pixels, a multiple of SCALE: larger ones are cropped, never resized."""
    if side is None:
        return list(pairs)
    if side < SCALE or side % SCALE:
        raise QartsrError(f"max_side is {side}; choose a positive multiple of {SCALE}, or None for whole images")
    small = side // SCALE
    return [Pair(pair.id, central_file(pair.lq, small), central_file(pair.hr, side, SCALE)) for pair in pairs]


def central_file(path: Path, side: int, multiple: int = 1) -> Path:
    """A file with the central `side` x `side` pixels of an image; `path` itself where it is no larger.

    The crop begins at a multiple of `multiple`, so that LQ and HR show the same part.
    """
    return _part(path, f"central {side} {multiple}", lambda image: central_crop(image, side, multiple))


def divisible_file(path: Path) -> Path:
    """A file with the largest part from the top left whose sides divide by SCALE (BasicSR's mod_crop)."""

    def cut(image: torch.Tensor) -> torch.Tensor:
        height, width = (side // SCALE * SCALE for side in image.shape[-2:])
        if not height or not width:
            raise QartsrError(f"{path}: is smaller than {SCALE} pixels; remove it")
        return image[..., :height, :width]

    return _part(path, f"divisible {SCALE}", cut)


def _part(path: Path, which: str, cut: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A PNG of the same stem in the untracked cache, in a folder named by what it was made from."""
    made_from = hashlib.sha256(f"{remembered_sha256(path)} {which}".encode()).hexdigest()[:12]
    target = paths.cache_dir() / "datasets" / "parts" / made_from / f"{path.stem}.png"
    if target.is_file():
        return target
    image = read_image(path)
    part = cut(image)
    return path if part.shape == image.shape else write_png(target, part)
