"""Data sets: named pairs of image files, checked before a sweep begins, and parts of photographs as files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.image import central_crop, header_size, read_image, write_png

SCALE = 4


@dataclass(frozen=True)
class Pair:
    """One test image: a low-quality file and its reference, exactly four times as large."""

    id: str
    lq: Path
    hr: Path


def strided(items: Sequence, limit: int | None) -> list:
    """At most `limit` items (a QartsrError below 1), spread by a fixed stride; all of them when it is None."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise QartsrError(f"max_images is {limit}; use at least 1, or None for all images")
    return list(items[:: len(items) // limit][:limit])


def check_pair(pair: Pair) -> bool:
    """Whether HR is four times LR, by the headers; False with up to three rows or columns more, else a QartsrError."""
    (width, height), hr = header_size(pair.lq), header_size(pair.hr)
    if hr == (width, height):
        raise QartsrError(
            f"{pair.lq}: LR has the size of HR, {width}x{height}: it was enlarged already, as in RealSR's versions 1 "
            f"and 2, and is no input for x{SCALE}; use a copy whose LR is a quarter as wide and high as HR"
        )
    if tuple(side // SCALE for side in hr) != (width, height):
        raise QartsrError(
            f"{pair.hr}: is {hr[0]}x{hr[1]}, expected {SCALE * width}x{SCALE * height}, "
            f"four times {pair.lq.name}; replace one of the two"
        )
    return hr == (SCALE * width, SCALE * height)


def fingerprint(pairs: Sequence[Pair]) -> str:
    """sha256 over ids and file contents of `pairs`: part of every run's key."""
    lines = (f"{pair.id} {remembered_sha256(pair.lq)} {remembered_sha256(pair.hr)}\n" for pair in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def available_data(
    names: Sequence[str], data_root: Path | None, max_images: int | None = None, max_side: int | None = None
) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """({data set: checked pairs}, {data set: why it is absent}); for the limits see `Profile`.

    A QartsrError where a data set is present but broken (the file is named), or none is present.
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
