"""What lies in figures/<profile>/gallery, apart from how it is made (`gallery`).

    index.json                            photographs, settings, one entry per picture
    chelsea/original.webp
    chelsea/QArtSR-W4A4-embedded-T1.webp

A picture belongs to a model (backbone, T, method, bits), so settings that share a model share its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qartsr_lib import paths

INDEX = "index.json"
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
