"""Tables and the verdict of notebook 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from qartsr_lib.study.experiments.theorem import LawFit

Fits = Mapping[tuple[str, str], Sequence[LawFit]]
LAW_TEXT = {
    "a": "the paper's sqrt(1 - alpha_T)",
    "b": "sqrt((1 - alpha_T) / alpha_T) of Eq. (6) with a constant error of the noise",
    "c": "a constant relative error of the noise",
}


def error_table(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean errors per backbone, bit width and timestep."""
    columns = ["error_eps", "relative_error_eps", "error_z_h", "error_image", "required_change"]
    return errors.groupby(["backbone", "bits", "timestep"], sort=False)[columns].mean().round(4)


def encoder_table(errors: pd.DataFrame) -> pd.DataFrame:
    """The encoder's error before and after Eq. (6), and its measured amplification."""
    columns = ["encoder_error_z_l", "encoder_error_z_h_direct", "encoder_error_z_h"]
    table = errors.groupby(["backbone", "bits", "timestep"], sort=False)[columns].mean()
    table["amplification (direct)"] = table["encoder_error_z_h_direct"] / table["encoder_error_z_l"]
    table["amplification"] = table["encoder_error_z_h"] / table["encoder_error_z_l"]
    return table.round(4)


def law_table(fits: Fits) -> pd.DataFrame:
    """One row per backbone, bit width and law: constant, misfit as a factor, and its interval."""
    rows = []
    for (backbone, bits), group in fits.items():
        least = min(fit.log10_residual for fit in group)  # NaN, which equals nothing, where there is one T
        for fit in group:
            factors = (10**exponent for exponent in (fit.log10_residual, fit.low, fit.high))
            rows.append((backbone, bits, fit.law, fit.constant, *factors, fit.log10_residual == least))
    columns = ["backbone", "bits", "law", "constant", "off_by", "ci_low", "ci_high", "best"]
    return pd.DataFrame(rows, columns=columns).round(4)


def theorem_verdict(errors: pd.DataFrame, fits: Fits, contributions: pd.DataFrame) -> str:
    """What the measurement says, in sentences made from its numbers (Markdown)."""
    lines = ["### Verdict on the timestep theorem", ""]
    for backbone in errors["backbone"].unique():
        lines += [f"**{backbone}**", ""]
        count = errors.loc[errors["backbone"] == backbone, "timestep"].nunique()
        if count == 1:
            lines.append("- Only one timestep: any law fits it, and nothing is said of how the error depends on T.")
        else:
            lines += [_law_sentence(backbone, bits, group) for (name, bits), group in fits.items() if name == backbone]
        if count == 2:
            lines.append("- Only two timesteps: the laws differ here in nothing but the ratio of the two errors.")
        if count > 1:
            lines.append(_ratio_sentence(errors, backbone))
        lines += [_contribution_sentence(contributions, backbone), ""]
    return "\n".join(lines)


def _law_sentence(backbone: str, bits: str, group: Sequence[LawFit]) -> str:
    ordered = sorted(group, key=lambda fit: fit.log10_residual)
    best, rest = ordered[0], ordered[1:]
    others = ", ".join(f"law ({fit.law}) is off by {10**fit.log10_residual:.1f}x" for fit in rest)
    return (
        f"- {bits}: the error of z_H follows law ({best.law}), {LAW_TEXT[best.law]}, best "
        f"(off by {10**best.log10_residual:.2f}x over T); {others}."
    )


def _ratio_sentence(errors: pd.DataFrame, backbone: str) -> str:
    part = errors[errors["backbone"] == backbone]
    low, high = part["timestep"].min(), part["timestep"].max()
    texts = []
    for bits, group in part.groupby("bits", sort=False):
        means = group.groupby("timestep")[["error_z_h", "error_image"]].mean()
        z_h, image = means.loc[high] / means.loc[low]
        texts.append(f"{bits}: {z_h:.2g}x in z_H, {image:.2g}x in the image")
    return f"- Error at T = {high} over error at T = {low}: " + "; ".join(texts) + "."


def _contribution_sentence(contributions: pd.DataFrame, backbone: str) -> str:
    means = contributions[contributions["backbone"] == backbone].groupby(["timestep", "variant"])["psnr_y"].mean()
    texts = [
        f"T = {t}: {means[t, 'full']:.2f} dB, without its noise {means[t, 'no noise']:.2f}, "
        f"z_L decoded directly {means[t, 'identity']:.2f}"
        for t in sorted(means.index.get_level_values(0).unique(), reverse=True)
    ]
    return "- What the UNet contributes (PSNR-Y): " + "; ".join(texts) + "."
