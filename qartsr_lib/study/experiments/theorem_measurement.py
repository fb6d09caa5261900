"""The measurements of notebook 01: which photographs, which backbones, and what is taken of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib.backbones import Stages, load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, fingerprint
from qartsr_lib.images.datasets.calibration import CalibrationList, calibration_list
from qartsr_lib.images.image import from_uint8, psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.study.experiments import theorem
from qartsr_lib.study.measured import Measured, measure_cells
from qartsr_lib.study.profiles import Profile

#: Errors over latents need fewer photographs than quality tables; spread by a fixed stride.
DEFAULT_IMAGES = 20
PREFERRED_DATASETS = ("RealSR", "Urban100", "samples")


@dataclass(frozen=True)
class Measurement:
    """A fixed choice of photographs, backbones and calibration crops.

    Attributes:
        cells: (backbone, timestep) pairs whose weights are on this machine.
        absent: the pairs that were asked for and are not.
    """

    profile: str
    dataset: str
    pairs: tuple[Pair, ...]
    bits: tuple[str, ...]
    cells: tuple[tuple[str, int], ...]
    absent: tuple[tuple[str, int], ...]
    calibration: CalibrationList

    @classmethod
    def prepare(
        cls,
        profile: Profile,
        data_root: Path | None,
        dataset: str | None = None,
        max_images: int | None = None,
        extra_timesteps: Sequence[int] = (),
        extra_backbones: Sequence[str] = (),
    ) -> Measurement:
        """Choose the data set (real benchmark before samples), the photographs, backbones and timesteps.

        Extra timesteps and backbones are used where their weights have been trained.
        """
        dataset = dataset or _preferred(profile, data_root)
        limit = max_images or profile.max_images or DEFAULT_IMAGES
        pairs = DATASETS.get(dataset).pairs(data_root, limit)
        backbones = dict.fromkeys((*profile.backbones, *extra_backbones))
        timesteps = sorted({*profile.timesteps, *extra_timesteps}, reverse=True)
        asked = list(itertools.product(backbones, timesteps))
        shipped = set(itertools.product(profile.backbones, profile.timesteps))
        found = [cell for cell in asked if _loads(*cell, required=cell in shipped)]
        absent = tuple(cell for cell in asked if cell not in found)
        calibration = calibration_list(profile, data_root)
        return cls(profile.name, dataset, tuple(pairs), profile.bits, tuple(found), absent, calibration)

    def describe(self) -> str:
        """One line per choice, for the notebook."""
        lines = [
            f"{len(self.pairs)} photographs of {self.dataset}; ranges from {len(self.calibration.images)} crops of "
            f"{self.calibration.name}"
        ]
        lines += [f"{name} at T = {t}: no weights here (make backbone trains them)" for name, t in self.absent]
        return "\n".join(lines)

    def errors(self) -> Measured:
        """`theorem.sweep` of every cell: one row per data set, backbone, timestep, bit width and image."""
        images = {pair.id: read_image(pair.lq) for pair in self.pairs}

        def measure(cell: tuple[str, int]) -> pd.DataFrame:
            rows = theorem.sweep(*cell, self.bits, images, self.calibration.images)
            rows.insert(0, "dataset", self.dataset)
            return rows

        calibration = {"name": self.calibration.name, "sha256": self.calibration.sha256}
        asked = {"method": "maxmin", "bits": list(self.bits), "calibration": calibration}
        return measure_cells(self.profile, self._questions("latent errors", asked), measure)

    def contributions(self) -> Measured:
        """PSNR-Y of full / no noise / identity / bicubic: rows dataset, backbone, timestep, variant, image, psnr_y."""

        def measure(cell: tuple[str, int]) -> pd.DataFrame:
            full = load_backbone(*cell)
            rows = []
            for pair in progress(self.pairs, f"UNet contribution, {cell[0]} T={cell[1]}"):
                lq, hr = read_image(pair.lq), read_image(pair.hr)
                images = theorem.contribution(full, full.prepare(lq)) | {"bicubic": upscale_bicubic(lq)}
                rows += [
                    (self.dataset, *cell, variant, pair.id, _png_psnr_y(image, hr)) for variant, image in images.items()
                ]
            return pd.DataFrame(rows, columns=["dataset", "backbone", "timestep", "variant", "image", "psnr_y"])

        return measure_cells(self.profile, self._questions("UNet contribution", {}), measure)

    def _questions(self, measurement: str, settings: dict) -> dict[tuple[str, int], dict]:
        """Cell -> all that determines what is measured of it."""
        data = {"name": self.dataset, "images": len(self.pairs), "sha256": fingerprint(list(self.pairs))}
        return {
            (name, timestep): {
                "parameters": {"measurement": measurement, "backbone": name, "timestep": timestep, **settings},
                "weights_sha256": load_backbone(name, timestep).weights_sha256,
                "data": data,
            }
            for name, timestep in self.cells
        }

    def stages(
        self, backbone: str, photograph: str, bits: str, timesteps: Sequence[int]
    ) -> list[tuple[int, Stages, Stages]]:
        """(timestep, full precision, UNet quantized) of a sample photograph: the rows of Fig. 7."""
        lq = read_image(sample_pair(photograph).lq)
        cells = []
        for timestep in timesteps:
            full = load_backbone(backbone, timestep)
            quantized = METHODS.get("maxmin").build(full, bits, self.calibration.images).backbone
            with torch.no_grad():
                reference = full.stages(full.prepare(lq))
            cells.append((timestep, reference, theorem.with_quantized_unet(full, quantized, reference)))
        return cells


def sample_pair(photograph: str) -> Pair:
    """The pair of a sample photograph by name; pictures that are published are of these alone.

    Raises:
        QartsrError: not one of the test photographs.
    """
    pairs = {pair.id: pair for pair in DATASETS.get("samples").pairs()}
    if photograph not in pairs:
        raise QartsrError(f"photograph {photograph!r}: choose one of {', '.join(pairs)}")
    return pairs[photograph]


def _preferred(profile: Profile, data_root: Path | None) -> str:
    for name in PREFERRED_DATASETS:
        if name in profile.datasets and DATASETS.get(name).available(data_root) is None:
            return name
    raise QartsrError(f"profile {profile.name}: none of its data sets is on this machine; set DATA_ROOT")


def _loads(backbone: str, timestep: int, required: bool) -> bool:
    try:
        load_backbone(backbone, timestep)
    except QartsrError:
        if required:
            raise
        return False
    return True


def _png_psnr_y(image: torch.Tensor, hr: torch.Tensor) -> float:
    """PSNR-Y of what the 8-bit PNG of `image` would hold, padding cropped."""
    image = image[..., : hr.shape[-2], : hr.shape[-1]]
    return psnr_y(from_uint8(to_uint8(image)), hr)
