"""The timestep theorem (QArtSR section 3.2): three laws for the HR latent's quantization error, and its measurement.

Set-up as in the paper's section 4.3: z_L comes from the full-precision encoder and only the UNet is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.base import OneStepSR, Stages, load_backbone, shortcuts
from qartsr_lib.base.progress import progress
from qartsr_lib.methods import METHODS


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
    """Errors that a quantized UNet makes on one image, all as root mean squares.

    Args:
        full, quantized: the same backbone in full precision and with a quantized UNet.
        reference: what `full` makes of the image.

    Returns:
        error_eps, error_z_h, error_image; relative_error_eps (rho); z_l, z_h, eps (sizes);
        required_change (law c without its constant).
    """
    changed = with_quantized_unet(full, quantized, reference)
    return {
        "error_eps": rms(changed.eps - reference.eps),
        "error_z_h": rms(changed.z_h - reference.z_h),
        "error_image": rms(changed.image - reference.image),
        "relative_error_eps": rms(changed.eps - reference.eps) / max(rms(reference.eps), 1e-12),
        "z_l": rms(reference.z_l),
        "z_h": rms(reference.z_h),
        "eps": rms(reference.eps),
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
    """What a quantized encoder's error becomes in z_H, with the UNet in full precision.

    Returns:
        encoder_error_z_l; encoder_error_z_h_direct, with the predicted noise held at its
        full-precision value, so that Eq. (6) alone acts; encoder_error_z_h, with the UNet's answer
        to the changed z_L.
    """
    z_l = quantized.encode(upscaled)
    direct = full.to_z_h(z_l, reference.eps)
    answered = full.to_z_h(z_l, full.predict_noise(z_l))
    return {
        "encoder_error_z_l": rms(z_l - reference.z_l),
        "encoder_error_z_h_direct": rms(direct - reference.z_h),
        "encoder_error_z_h": rms(answered - reference.z_h),
    }


def sweep(
    backbone: str,
    timestep: int,
    bits: Sequence[str],
    images: Mapping[str, torch.Tensor],
    calibration: list[torch.Tensor],
) -> pd.DataFrame:
    """Measure UNet and encoder errors of MaxMin for every image and bit width of one backbone.

    Args:
        images: id -> LQ image (1, 3, h, w) in [0, 1].

    Returns:
        Rows backbone, timestep, bits, image and the columns of the two measurements.
    """
    full = load_backbone(backbone, timestep)
    models = {width: METHODS.get("maxmin").build(full, width, calibration).backbone for width in bits}
    rows = []
    for image, lq in progress(images.items(), f"{backbone} T={timestep}"):
        upscaled = full.prepare(lq)
        with torch.no_grad():
            reference = full.stages(upscaled)
        for width, quantized in models.items():
            row = {"backbone": backbone, "timestep": timestep, "bits": width, "image": image}
            row |= measure_unet_error(full, quantized, reference)
            rows.append(row | measure_encoder_error(full, quantized, upscaled, reference))
    return pd.DataFrame(rows)


def contribution(full: OneStepSR, upscaled: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images that show what the UNet contributes, (1, 3, H, W) in [0, 1] each.

    `full`: the backbone; `no noise`: predicted noise set to zero, z_H = z_L / sqrt(alpha_T) (z_L with
    scaled input); `identity`: z_H replaced by z_L.
    """
    with torch.no_grad():
        z_l = full.encode(upscaled)
        return {name: full.decode(to_z_h(z_l)).clamp(0, 1) for name, to_z_h in shortcuts(full).items()}


@dataclass(frozen=True)
class LawFit:
    """How well error = constant * law(T) holds.

    Attributes:
        law: "a", "b" or "c".
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


def fit_laws(frame: pd.DataFrame, error: str = "error_z_h", samples: int = 1000, seed: int = 0) -> list[LawFit]:
    """Fit the one constant of each law on a log scale; images are resampled together over all T.

    Args:
        frame: rows image, timestep, `error`, required_change, of one backbone and one bit width.
    """
    rng = np.random.default_rng(seed)
    images = frame["image"].unique()
    draws = [rng.choice(images, len(images)) for _ in range(samples)]
    fits = []
    for law, values in LAWS.items():
        ratio = frame.assign(ratio=np.log10(frame[error].to_numpy() / values(frame)))
        table = ratio.pivot(index="image", columns="timestep", values="ratio")
        residuals = [_residual(table.loc[draw]) for draw in draws]
        low, high = np.percentile(residuals, [2.5, 97.5])
        constant = 10.0 ** table.mean(axis=0).mean()
        fits.append(LawFit(law, float(constant), _residual(table), float(low), float(high)))
    return fits


def _residual(table: pd.DataFrame) -> float:
    """RMS over T of the image-averaged log10 ratio around its mean."""
    means = table.mean(axis=0)
    return float(np.sqrt(((means - means.mean()) ** 2).mean()))


def relative_errors(frame: pd.DataFrame, group: Iterable[str]) -> pd.DataFrame:
    """Mean relative error of the predicted noise per group: what law (c) takes to be constant over T."""
    return frame.groupby(list(group), as_index=False)["relative_error_eps"].mean()
