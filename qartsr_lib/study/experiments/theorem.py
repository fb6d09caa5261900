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
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, available_data, fingerprint
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.image import from_uint8, psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.study.experiments.timestep import Cell, measure_by_image
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.profiles import Profile

#: Errors over latents need fewer photographs than quality tables; spread by a fixed stride.
DEFAULT_IMAGES = 20
#: Of the profile's data sets the first of these that is here is measured, else the first of the others.
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
    root = 1.0 if scaled else schedule.alpha(timestep) ** 0.5
    return rms(stages.z_l - root * stages.z_h) / root


def rms(values: torch.Tensor) -> float:
    """Root mean square, taken in float64."""
    return float(values.double().pow(2).mean().sqrt())


@torch.no_grad()
def measure_errors(full: OneStepSR, quantized: OneStepSR, upscaled: torch.Tensor, reference: Stages) -> dict:
    """Root mean squares of what one part of `quantized` does to the image of which `full` makes `reference`.

    Returns:
        Of its UNet alone: error_eps, error_z_h, error_image; relative_error_eps (rho); z_l, z_h, eps (sizes);
        required_change (law c without its constant). Of its encoder alone: encoder_error_z_l;
        encoder_error_z_h_direct, with the predicted noise held at its full-precision value, so that Eq. (6) alone
        acts; encoder_error_z_h, with the UNet's answer to the changed z_L.
    """
    changed, z_l = with_quantized_unet(full, quantized, reference), quantized.encode(upscaled)
    errors = {name: rms(getattr(changed, name) - getattr(reference, name)) for name in ("eps", "z_h", "image")}
    sizes = {name: rms(getattr(reference, name)) for name in ("z_l", "z_h", "eps")}
    return {
        **{f"error_{name}": error for name, error in errors.items()},
        "relative_error_eps": errors["eps"] / max(sizes["eps"], 1e-12),
        **sizes,
        "required_change": required_change(reference, full.timestep, full.scaled),
        "encoder_error_z_l": rms(z_l - reference.z_l),
        "encoder_error_z_h_direct": rms(full.to_z_h(z_l, reference.eps) - reference.z_h),
        "encoder_error_z_h": rms(full.to_z_h(z_l, full.predict_noise(z_l)) - reference.z_h),
    }


@torch.no_grad()
def with_quantized_unet(full: OneStepSR, quantized: OneStepSR, reference: Stages) -> Stages:
    """The staged outputs when z_L is full precision and only the UNet is that of `quantized`."""
    eps = quantized.predict_noise(reference.z_l)
    z_h = full.to_z_h(reference.z_l, eps)
    return Stages(reference.z_l, eps, z_h, full.decode(z_h))


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
    """How well error = constant * law(T) holds."""

    law: str  # of LAWS
    constant: float  # geometric mean of error / law over T
    log10_residual: float  # RMS of log10(error / (constant law)) over T; 0 is perfect, 1 is a factor of ten; NaN: one T
    low: float  # bootstrap interval of the residual over images; NaN for one image
    high: float


LAWS: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "a": lambda frame: frame["timestep"].map(paper_lambda).to_numpy(),
    "b": lambda frame: frame["timestep"].map(noise_gain).to_numpy(),
    "c": lambda frame: frame["required_change"].to_numpy(),
}


def fit_laws(frame: pd.DataFrame, samples: int = 1000) -> list[LawFit]:
    """Fit the one constant of each law on a log scale; images are resampled together over all T.

    `frame`: rows image, timestep, error_z_h, required_change, of one backbone and one bit width.
    """
    rng, images, fits = np.random.default_rng(0), frame["image"].unique(), []
    draws = np.stack([rng.choice(len(images), len(images)) for _ in range(samples)])
    for law, values in LAWS.items():
        ratio = frame.assign(ratio=np.log10(frame["error_z_h"].to_numpy() / values(frame)))
        table = ratio.pivot(index="image", columns="timestep", values="ratio").loc[images].to_numpy()
        means = table.mean(axis=0)
        low, high = np.percentile(_residual(table[draws].mean(axis=1)), [2.5, 97.5])
        if len(images) < 2:
            low = high = np.nan
        fits.append(LawFit(law, float(10.0 ** means.mean()), float(_residual(means)), float(low), float(high)))
    return fits


def _residual(means: np.ndarray) -> np.ndarray:
    """RMS over T, the last axis, of image-averaged log10 ratios around their mean; NaN for one T: any law fits."""
    if means.shape[-1] < 2:
        return np.full(means.shape[:-1], np.nan)
    return np.sqrt(((means - means.mean(axis=-1, keepdims=True)) ** 2).mean(axis=-1))


class Measurement:
    """A fixed choice of photographs (of PREFERRED_DATASETS first), backbones and calibration crops.

    `cells` are the (backbone, T) of the profile, and the extra ones whose weights have been trained; `absent` the rest.
    """

    def __init__(
        self,
        profile: Profile,
        data_root: Path | None,
        extra_timesteps: Sequence[int] = (),
        extra_backbones: Sequence[str] = (),
    ) -> None:
        known = sorted(profile.datasets, key=lambda name: (*PREFERRED_DATASETS, name).index(name))
        usable = [name for name in known if DATASETS.get(name).available(data_root) is None]
        limits = DEFAULT_IMAGES if profile.max_images is None else profile.max_images, profile.max_side
        ((self.dataset, self.pairs),) = available_data(usable[:1] or known, data_root, *limits)[0].items()
        self.profile, self.calibration = profile, calibration_list(profile, data_root)
        self.cells: list[Cell] = []
        self.absent: list[Cell] = []
        timesteps = sorted({*profile.timesteps, *extra_timesteps}, reverse=True)
        for cell in product(dict.fromkeys((*profile.backbones, *extra_backbones)), timesteps):
            try:
                load_backbone(*cell)
                self.cells.append(cell)
            except QartsrError:
                if cell in product(profile.backbones, profile.timesteps):
                    raise
                self.absent.append(cell)

    def describe(self) -> str:
        """One line per choice, for the notebook."""
        crops = f"{len(self.calibration.images)} crops of {self.calibration.name}"
        lines = [f"{len(self.pairs)} photographs of {self.dataset}; ranges from {crops}"]
        lines += [f"{name} at T = {t}: no weights here (make backbone trains them)" for name, t in self.absent]
        return "\n".join(lines)

    def errors(self) -> Measured:
        """`measure_errors` of MaxMin: one row per data set, backbone, timestep, bit width and image."""

        def rows(full: OneStepSR, pair: Pair, models: dict[str, OneStepSR]) -> list[dict]:
            upscaled = full.prepare(read_image(pair.lq))
            reference = full.stages(upscaled)
            return [
                {"bits": bits, "image": pair.id, **measure_errors(full, model, upscaled, reference)}
                for bits, model in models.items()
            ]

        asked = {"measurement": "latent errors", "method": "maxmin", "bits": list(self.profile.bits)}
        asked["calibration"] = {"name": self.calibration.name, "sha256": self.calibration.sha256}
        return self._measured(asked, rows)

    def contributions(self) -> Measured:
        """PSNR-Y of full / no noise / identity / bicubic: rows dataset, backbone, timestep, variant, image, psnr_y."""

        def rows(full: OneStepSR, pair: Pair, _: dict) -> list[dict]:
            lq, hr = read_image(pair.lq), read_image(pair.hr)
            images = contribution(full, full.prepare(lq)) | {"bicubic": upscale_bicubic(lq)}
            height, width = hr.shape[-2:]
            saved = {name: from_uint8(to_uint8(image[..., :height, :width])) for name, image in images.items()}
            return [{"variant": name, "image": pair.id, "psnr_y": psnr_y(sr, hr)} for name, sr in saved.items()]

        return self._measured({"measurement": "UNet contribution"}, rows)

    def _measured(self, asked: dict, rows: Callable[..., list[dict]]) -> Measured:
        facts = {"data": {"name": self.dataset, "images": len(self.pairs), "sha256": fingerprint(self.pairs)}}
        place = self.cells, self.dataset, self.pairs
        return measure_by_image(self.profile.name, asked, *place, rows, self.calibration, facts)

    def stages(
        self, backbone: str, photograph: str, bits: str, timesteps: Sequence[int]
    ) -> list[tuple[int, Stages, Stages]]:
        """(timestep, full precision, UNet quantized) of a sample photograph (`sample_pair`): the rows of Fig. 7."""
        lq, rows = read_image(sample_pair(photograph).lq), []
        for timestep in timesteps:
            full = load_backbone(backbone, timestep)
            quantized = METHODS.get("maxmin").build(full, bits, self.calibration.images).backbone
            with torch.no_grad():
                reference = full.stages(full.prepare(lq))
            rows.append((timestep, reference, with_quantized_unet(full, quantized, reference)))
        return rows


def sample_pair(photograph: str) -> Pair:
    """The pair of a sample photograph by name, or a QartsrError: pictures that are published are of these alone."""
    pairs = {pair.id: pair for pair in DATASETS.get("samples").pairs()}
    if photograph not in pairs:
        raise QartsrError(f"photograph {photograph!r}: choose one of {', '.join(pairs)}")
    return pairs[photograph]


def latent_differences(stages: Sequence[tuple[int, Stages, Stages]]) -> dict[int, np.ndarray]:
    """T -> quantized minus full-precision z_H, flat, of rows (T, full precision, quantized)."""
    return {timestep: (quantized.z_h - full.z_h).flatten().numpy() for timestep, full, quantized in stages}
