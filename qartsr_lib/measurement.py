"""The measurements of notebook 01: which photographs, which backbones, and what is taken of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib import theorem
from qartsr_lib.backbones import Stages, load_backbone
from qartsr_lib.datasets import DATASETS
from qartsr_lib.datasets.base import Pair
from qartsr_lib.datasets.calibration import CalibrationList, calibration_list
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import from_uint8, read_image, to_uint8, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.profiles import Profile
from qartsr_lib.progress import progress
from qartsr_lib.training.validation import luma, psnr

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
    ) -> Measurement:
        """Choose the data set (real benchmark before samples), the photographs and the timesteps.

        Extra timesteps are used in every backbone that has weights for them.
        """
        dataset = dataset or _preferred(profile, data_root)
        limit = max_images or profile.max_images or DEFAULT_IMAGES
        pairs = DATASETS.get(dataset).pairs(data_root, limit)
        asked = [(name, t) for name in profile.backbones for t in dict.fromkeys((*profile.timesteps, *extra_timesteps))]
        found = [cell for cell in asked if _loads(*cell, required=cell[1] in profile.timesteps)]
        found.sort(key=lambda cell: (profile.backbones.index(cell[0]), -cell[1]))
        absent = tuple(cell for cell in asked if cell not in found)
        calibration = calibration_list(profile, data_root)
        return cls(dataset, tuple(pairs), profile.bits, tuple(found), absent, calibration)

    def describe(self) -> str:
        """One line per choice, for the notebook."""
        lines = [
            f"{len(self.pairs)} photographs of {self.dataset}; ranges from {len(self.calibration.images)} crops of "
            f"{self.calibration.name}"
        ]
        lines += [f"{name} at T = {t}: no weights here (make backbone trains them)" for name, t in self.absent]
        return "\n".join(lines)

    def errors(self) -> pd.DataFrame:
        """`theorem.sweep` of every cell: one row per backbone, timestep, bit width and image."""
        images = {pair.id: read_image(pair.lq) for pair in self.pairs}
        frames = [
            theorem.sweep(name, timestep, self.bits, images, self.calibration.images) for name, timestep in self.cells
        ]
        errors = pd.concat(frames, ignore_index=True)
        errors.insert(0, "dataset", self.dataset)
        return errors

    def contributions(self) -> pd.DataFrame:
        """PSNR-Y of full / no noise / identity / bicubic: rows dataset, backbone, timestep, variant, image, psnr_y."""
        rows = []
        for name, timestep in progress(self.cells, "UNet contribution"):
            full = load_backbone(name, timestep)
            for pair in self.pairs:
                lq, hr = read_image(pair.lq), read_image(pair.hr)
                images = theorem.contribution(full, full.prepare(lq)) | {"bicubic": upscale_bicubic(lq)}
                rows += [
                    (self.dataset, name, timestep, variant, pair.id, _psnr_y(image, hr))
                    for variant, image in images.items()
                ]
        return pd.DataFrame(rows, columns=["dataset", "backbone", "timestep", "variant", "image", "psnr_y"])

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


def _psnr_y(image: torch.Tensor, hr: torch.Tensor) -> float:
    """PSNR-Y of what the 8-bit PNG of `image` would hold, padding cropped."""
    image = image[..., : hr.shape[-2], : hr.shape[-1]]
    return psnr(luma(from_uint8(to_uint8(image))), luma(hr))
