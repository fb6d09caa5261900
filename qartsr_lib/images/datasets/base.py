"""What a data set is: named pairs of image files, checked before a sweep begins."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.image import header_size

SCALE = 4


@dataclass(frozen=True)
class Pair:
    """One test image: a low-quality file and its reference, exactly four times as large."""

    id: str
    lq: Path
    hr: Path


class Dataset(Protocol):
    """The seam of `DATASETS`; `folders.FolderDataset` is the usual case."""

    name: str  # in result tables
    description: str  # one line for notebook 00

    def available(self, data_root: Path | None = None) -> str | None:
        """None when the data set can be used, else the reason and how to get it."""

    def pairs(self, data_root: Path | None = None, max_images: int | None = None) -> list[Pair]:
        """The pairs in fixed order; QartsrError names the file that is missing or wrong."""


def strided(items: Sequence, limit: int | None) -> list:
    """At most `limit` items (a QartsrError below 1), spread by a fixed stride; all of them when it is None."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise QartsrError(f"max_images is {limit}; use at least 1, or None for all images")
    return list(items[:: len(items) // limit][:limit])


def check_pair(pair: Pair) -> bool:
    """Whether HR is four times LR, by the file headers; False where it has up to three rows or columns more.

    Raises:
        QartsrError: a file is missing or no image, or of another size.
    """
    (width, height), hr = _header_size(pair.lq), _header_size(pair.hr)
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


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as opened:
            return header_size(opened)
    except FileNotFoundError as error:
        raise QartsrError(f"{path}: no such file; complete the data set or remove its partner") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise QartsrError(f"{path}: not a readable image; replace it or remove the pair") from error
