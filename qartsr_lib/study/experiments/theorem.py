"""Notebook 01. The timestep theorem (QArtSR section 3.2): three laws for the HR latent's error, and its measurement.

Set-up of the paper's section 4.3: z_L comes from the full-precision encoder and only the UNet is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.base import OneStepSR, Stages, load_backbone, shortcuts
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, fingerprint
from qartsr_lib.images.datasets.calibration import CalibrationList, calibration_list
from qartsr_lib.images.image import from_uint8, psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import Profile

Cell = tuple[str, int]
#: Errors over latents need fewer photographs than quality tables; spread by a fixed stride.
DEFAULT_IMAGES = 20
PREFERRED_DATASETS = ("RealSR", "Urban100", "samples")


def paper_lambda(timestep: int) -> float:
    """Law (a), QArtSR Eq. (7): sqrt(1 - alpha_T)."""
    return (1.0 - schedule.alpha(timestep)) ** 0.5


def noise_gain(timestep: int) -> float:
    """Law (b), the factor of eps in Eq. (6): sqrt((1 - alpha_T) / alpha_T)."""
    alpha = schedule.alpha(timestep)
    return ((1.0 - alpha) / alpha) ** 0.5


def latent_gain(timestep: int) -> float:
    """The factor of z_L in Eq. (6), by which the encoder's error is amplified: 1 / sqrt(alpha_T)."""
    return schedule.alpha(timestep) ** -0.5


def required_change(stages: Stages, timestep: int, scaled: bool) -> float:
    """Law (c): what the UNet must contribute to z_H, as a root mean square over the latent.

    ||z_L - sqrt(alpha_T) z_H|| / sqrt(alpha_T) for plain and ||z_L - z_H|| for scaled input. Times a
    constant relative error rho of the predicted noise it is the error of z_H.
    """
    root = schedule.alpha(timestep) ** 0.5
    if scaled:
        return rms(stages.z_l - stages.z_h)
    return rms(stages.z_l - root * stages.z_h) / root


def rms(values: torch.Tensor) -> float:
    """Root mean square, taken in float64."""
    return float(values.double().pow(2).mean().sqrt())


def measure_unet_error(full: OneStepSR, quantized: OneStepSR, reference: Stages) -> dict[str, float]:
    """Errors that the UNet of `quantized` makes on the image of which `full` makes `reference`, as root mean squares.

    Returns:
        error_eps, error_z_h, error_image; relative_error_eps (rho); z_l, z_h, eps (sizes);
        required_change (law c without its constant).
    """
    changed = with_quantized_unet(full, quantized, reference)
    errors = {name: rms(getattr(changed, name) - getattr(reference, name)) for name in ("eps", "z_h", "image")}
    sizes = {name: rms(getattr(reference, name)) for name in ("z_l", "z_h", "eps")}
    return {
        **{f"error_{name}": error for name, error in errors.items()},
        "relative_error_eps": errors["eps"] / max(sizes["eps"], 1e-12),
        **sizes,
        "required_change": required_change(reference, full.timestep, full.scaled),
    }


@torch.no_grad()
def with_quantized_unet(full: OneStepSR, quantized: OneStepSR, reference: Stages) -> Stages:
    """The staged outputs when z_L is full precision and only the UNet is that of `quantized`."""
    eps = quantized.predict_noise(reference.z_l)
    z_h = full.to_z_h(reference.z_l, eps)
    return Stages(reference.z_l, eps, z_h, full.decode(z_h))


@torch.no_grad()
def measure_encoder_error(
    full: OneStepSR, quantized: OneStepSR, upscaled: torch.Tensor, reference: Stages
) -> dict[str, float]:
    """What the error of the encoder of `quantized` becomes in z_H, with the UNet in full precision.

    Returns:
        encoder_error_z_l; encoder_error_z_h_direct, with the predicted noise held at its full-precision value, so
        that Eq. (6) alone acts; encoder_error_z_h, with the UNet's answer to the changed z_L.
    """
    z_l = quantized.encode(upscaled)
    return {
        "encoder_error_z_l": rms(z_l - reference.z_l),
        "encoder_error_z_h_direct": rms(full.to_z_h(z_l, reference.eps) - reference.z_h),
        "encoder_error_z_h": rms(full.to_z_h(z_l, full.predict_noise(z_l)) - reference.z_h),
    }


@torch.no_grad()
def contribution(full: OneStepSR, upscaled: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images that show what the UNet contributes, (1, 3, H, W) in [0, 1] each.

    `full`: the backbone; `no noise`: predicted noise set to zero, z_H = z_L / sqrt(alpha_T) (z_L with
    scaled input); `identity`: z_H replaced by z_L.
    """
    z_l = full.encode(upscaled)
    return {name: full.decode(to_z_h(z_l)).clamp(0, 1) for name, to_z_h in shortcuts(full).items()}


@dataclass(frozen=True)
class LawFit:
    """How well error = constant * law(T) holds.

    Attributes:
        law: of LAWS.
        constant: geometric mean of error / law over T.
        log10_residual: root mean square of log10(error / (constant law)) over T; 0 is perfect, 1 is a factor of ten.
        low, high: bootstrap interval of the residual over images.
    """

    law: str
    constant: float
    log10_residual: float
    low: float
    high: float


LAWS: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "a": lambda frame: frame["timestep"].map(paper_lambda).to_numpy(),
    "b": lambda frame: frame["timestep"].map(noise_gain).to_numpy(),
    "c": lambda frame: frame["required_change"].to_numpy(),
}


def fit_laws(frame: pd.DataFrame, samples: int = 1000) -> list[LawFit]:
    """Fit the one constant of each law on a log scale; images are resampled together over all T.

    Args:
        frame: rows image, timestep, error_z_h, required_change, of one backbone and one bit width.
    """
    rng = np.random.default_rng(0)
    images = frame["image"].unique()
    draws = [rng.choice(images, len(images)) for _ in range(samples)]
    fits = []
    for law, values in LAWS.items():
        ratio = frame.assign(ratio=np.log10(frame["error_z_h"].to_numpy() / values(frame)))
        table = ratio.pivot(index="image", columns="timestep", values="ratio")
        low, high = np.percentile([_residual(table.loc[draw]) for draw in draws], [2.5, 97.5])
        constant = 10.0 ** table.mean(axis=0).mean()
        fits.append(LawFit(law, float(constant), _residual(table), float(low), float(high)))
    return fits


def _residual(table: pd.DataFrame) -> float:
    """RMS over T of the image-averaged log10 ratio around its mean."""
    means = table.mean(axis=0)
    return float(np.sqrt(((means - means.mean()) ** 2).mean()))


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
    cells: tuple[Cell, ...]
    absent: tuple[Cell, ...]
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
        known = [name for name in PREFERRED_DATASETS if name in profile.datasets]
        usable = [name for name in known if DATASETS.get(name).available(data_root) is None]
        if not dataset and not usable:
            raise QartsrError(f"profile {profile.name}: none of its data sets is on this machine; set DATA_ROOT")
        dataset = dataset or usable[0]
        pairs = DATASETS.get(dataset).pairs(data_root, max_images or profile.max_images or DEFAULT_IMAGES)
        backbones = dict.fromkeys((*profile.backbones, *extra_backbones))
        timesteps = sorted({*profile.timesteps, *extra_timesteps}, reverse=True)
        found, absent = [], []
        for cell in product(backbones, timesteps):
            try:
                load_backbone(*cell)
                found.append(cell)
            except QartsrError:
                if cell in product(profile.backbones, profile.timesteps):
                    raise
                absent.append(cell)
        calibration = calibration_list(profile, data_root)
        return cls(profile.name, dataset, tuple(pairs), profile.bits, tuple(found), tuple(absent), calibration)

    def describe(self) -> str:
        """One line per choice, for the notebook."""
        crops = f"{len(self.calibration.images)} crops of {self.calibration.name}"
        lines = [f"{len(self.pairs)} photographs of {self.dataset}; ranges from {crops}"]
        lines += [f"{name} at T = {t}: no weights here (make backbone trains them)" for name, t in self.absent]
        return "\n".join(lines)

    def errors(self) -> Measured:
        """UNet and encoder errors of MaxMin: one row per data set, backbone, timestep, bit width and image."""

        def measure(cell: Cell) -> pd.DataFrame:
            full, rows = load_backbone(*cell), []
            models = {bits: METHODS.get("maxmin").build(full, bits, self.calibration.images) for bits in self.bits}
            for pair in progress(self.pairs, f"{cell[0]} T={cell[1]}"):
                upscaled = full.prepare(read_image(pair.lq))
                with torch.no_grad():
                    reference = full.stages(upscaled)
                for bits, model in models.items():
                    row = {"dataset": self.dataset, "backbone": cell[0], "timestep": cell[1], "bits": bits}
                    row |= {"image": pair.id, **measure_unet_error(full, model.backbone, reference)}
                    rows.append(row | measure_encoder_error(full, model.backbone, upscaled, reference))
            return pd.DataFrame(rows)

        calibration = {"name": self.calibration.name, "sha256": self.calibration.sha256}
        asked = {"method": "maxmin", "bits": list(self.bits), "calibration": calibration}
        return measure_questions(self.profile, self._questions("latent errors", **asked), measure)

    def contributions(self) -> Measured:
        """PSNR-Y of full / no noise / identity / bicubic: rows dataset, backbone, timestep, variant, image, psnr_y."""

        def measure(cell: Cell) -> pd.DataFrame:
            full, rows = load_backbone(*cell), []
            for pair in progress(self.pairs, f"UNet contribution, {cell[0]} T={cell[1]}"):
                lq, hr = read_image(pair.lq), read_image(pair.hr)
                images = contribution(full, full.prepare(lq)) | {"bicubic": upscale_bicubic(lq)}
                for variant, image in images.items():
                    saved = from_uint8(to_uint8(image[..., : hr.shape[-2], : hr.shape[-1]]))  # as an 8-bit PNG
                    rows.append((self.dataset, *cell, variant, pair.id, psnr_y(saved, hr)))
            return pd.DataFrame(rows, columns=["dataset", "backbone", "timestep", "variant", "image", "psnr_y"])

        return measure_questions(self.profile, self._questions("UNet contribution"), measure)

    def _questions(self, measurement: str, **settings: object) -> dict[Cell, dict]:
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
        """(timestep, full precision, UNet quantized) of a sample photograph: the rows of Fig. 7.

        Raises:
            QartsrError: not one of the sample photographs; pictures that are published are of these alone.
        """
        lq, cells = read_image(sample_pair(photograph).lq), []
        for timestep in timesteps:
            full = load_backbone(backbone, timestep)
            quantized = METHODS.get("maxmin").build(full, bits, self.calibration.images).backbone
            with torch.no_grad():
                reference = full.stages(full.prepare(lq))
            cells.append((timestep, reference, with_quantized_unet(full, quantized, reference)))
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


def latent_differences(stages: Sequence[tuple[int, Stages, Stages]]) -> dict[int, np.ndarray]:
    """T -> quantized minus full-precision z_H, flat, of rows (T, full precision, quantized)."""
    return {timestep: (quantized.z_h - full.z_h).flatten().numpy() for timestep, full, quantized in stages}
