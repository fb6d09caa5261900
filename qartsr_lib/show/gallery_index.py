"""What lies in figures/<profile>/gallery, apart from how it is made (`gallery`).

    index.json                            photographs, settings, one entry per picture
    chelsea/original.webp
    chelsea/QArtSR-W4A4-embedded-T1.webp

A picture belongs to a model (backbone, T, method, bits), so settings that share a model share its file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError

Index = dict[str, list[dict[str, Any]]]
INDEX = "index.json"
#: Part of the index -> fields in which no two of its entries are alike.
SAME = {
    "photographs": ("id",),
    "settings": ("name",),
    "pictures": ("photograph", "backbone", "timestep", "method", "bits"),
}
ORIGINAL, BICUBIC = "original", "bicubic"


@dataclass(frozen=True)
class Picture:
    """One entry of the index.

    Attributes:
        photograph: id of the sample photograph.
        backbone, timestep, method, bits: as in tables; "", 0 and "" for the original and the bicubic input.
        psnr_y: of the whole picture in dB, before WebP; None for the original and where there is no picture.
        run_id: of the run record; "" where no network was run.
        file: relative to the gallery's folder; "" where a method diverged.
    """

    photograph: str
    backbone: str
    timestep: int
    method: str
    bits: str
    psnr_y: float | None
    run_id: str
    file: str


def gallery_dir(profile: str) -> Path:
    """figures/<profile>/gallery."""
    return paths.figures_dir(profile) / "gallery"


def read_index(path: Path) -> Index:
    """The index in `path`.

    Raises:
        QartsrError: it is none.
        FileNotFoundError: no such file.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for part, same in SAME.items():
            for entry in index[part]:
                itemgetter(*same)(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    return index


def damaged(path: Path) -> QartsrError:
    """The error for an index that is none."""
    return QartsrError(f"{path}: is not a gallery's index; run notebook 05 again")
