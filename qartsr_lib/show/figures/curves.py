"""Curves, histograms and bars from long data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.backbones import schedule
from qartsr_lib.show.figures.style import LAW_STYLES, colour, styled
from qartsr_lib.study.experiments import theorem
from qartsr_lib.study.stats import bootstrap_interval

LAW_NAMES = {
    "a": r"(a) paper: $\sqrt{1-\alpha_T}$",
    "b": r"(b) Eq. 6: $\sqrt{(1-\alpha_T)/\alpha_T}$",
    "c": r"(c) constant $\rho$",
}


def schedule_curves() -> Figure:
    """The paper's Fig. 5, alpha_T and lambda, and beside it what Eq. (6) does to errors."""
    labels = np.arange(1, schedule.NUM_STEPS + 1)
    with styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        left.plot(labels, [schedule.alpha(t) for t in labels], color="#1b7837", label=r"$\alpha_T$")
        left.plot(
            labels, [theorem.paper_lambda(t) for t in labels], color="#762a83", label=r"$\lambda=\sqrt{1-\alpha_T}$"
        )
        left.set(xlabel="timestep T", title="The paper's Fig. 5, from the schedule", xlim=(1, 1000))
        left.legend()
        right.semilogy(labels, [theorem.paper_lambda(t) for t in labels], color="#762a83", label=r"$\lambda$ (paper)")
        right.semilogy(
            labels,
            [theorem.noise_gain(t) for t in labels],
            "k--",
            label=r"$\sqrt{(1-\alpha_T)/\alpha_T}$: error of $\epsilon$",
        )
        right.semilogy(
            labels,
            [theorem.latent_gain(t) for t in labels],
            color="#e08214",
            label=r"$1/\sqrt{\alpha_T}$: error of $z_L$",
        )
        for t in schedule.PAPER_TIMESTEPS:
            right.plot(t, theorem.noise_gain(t), "o", color=colour(t), ms=5)
        right.set(xlabel="timestep T", title=r"What Eq. (6) multiplies errors by on the way to $z_H$", xlim=(-15, 1015))
        right.legend()
    return figure


def theorem_laws(frame: pd.DataFrame, fits: Mapping[tuple[str, str], Sequence[theorem.LawFit]]) -> Figure:
    """Measured error of z_H against T with the three fitted laws; rows: backbones, columns: bit widths.

    Args:
        frame: rows backbone, bits, timestep, image, error_z_h, required_change.
        fits: (backbone, bits) -> the three fits.
    """
    backbones, widths = list(frame["backbone"].unique()), list(frame["bits"].unique())
    with styled():
        figure, axes = plt.subplots(
            len(backbones),
            len(widths),
            figsize=(2.5 * len(widths) + 0.6, 2.6 * len(backbones)),
            sharey="row",
            squeeze=False,
        )
        for row, backbone in enumerate(backbones):
            for axis, bits in zip(axes[row], widths, strict=True):
                cell = frame[(frame["backbone"] == backbone) & (frame["bits"] == bits)]
                _one_law_panel(axis, cell, fits[backbone, bits])
                axis.set_title(f"{backbone}, {bits}")
            axes[row, 0].set_ylabel(r"RMS error of $z_H$")
        for axis in axes[-1]:
            axis.set_xlabel("timestep T")
        axes[0, 0].legend(fontsize=6.5)
    return figure


def _one_law_panel(axis, cell: pd.DataFrame, fits: Sequence[theorem.LawFit]) -> None:
    timesteps = sorted(cell["timestep"].unique())
    for fit in fits:
        law = np.array([theorem.LAWS[fit.law](cell[cell["timestep"] == t]).mean() for t in timesteps])
        line_colour, style = LAW_STYLES[fit.law]
        label = f"{LAW_NAMES[fit.law]}, off by {10**fit.log10_residual:.1f}x"
        axis.plot(timesteps, fit.constant * law, style, color=line_colour, label=label, lw=1.3)
    for t in timesteps:
        values = cell.loc[cell["timestep"] == t, "error_z_h"].to_numpy()
        low, high = bootstrap_interval(values)
        error = np.nan_to_num([[values.mean() - low], [high - values.mean()]], nan=0.0).clip(min=0)
        axis.errorbar(t, values.mean(), error, fmt="o", ms=5, color=colour(t), capsize=3)
    axis.set_yscale("log")
    axis.set_xticks(timesteps)


def error_histograms(errors: Mapping[str, Mapping[int, np.ndarray]]) -> Figure:
    """Distribution of the size of z_H's quantization error, one panel per backbone, one outline per T.

    Args:
        errors: backbone -> timestep -> flat array of errors.
    """
    with styled():
        figure, axes = plt.subplots(1, len(errors), figsize=(4 * len(errors), 2.8), squeeze=False)
        for axis, (backbone, by_timestep) in zip(axes[0], errors.items(), strict=True):
            sizes = {t: np.abs(values)[values != 0] for t, values in by_timestep.items()}
            low = min(np.percentile(size, 1) for size in sizes.values())
            high = max(size.max() for size in sizes.values())
            bins = np.geomspace(low, high, 81)
            for t, size in sizes.items():
                label = f"T = {t}, RMS {np.sqrt(np.mean(by_timestep[t] ** 2)):.3g}"
                share = np.full(len(size), 100.0 / len(size))
                axis.hist(size, bins=bins, weights=share, histtype="step", color=colour(t), label=label, lw=1.4)
            axis.set(
                title=backbone, xlabel=r"|quantization error of $z_H$|", ylabel="share of values / %", xscale="log"
            )
            axis.set_ylim(top=axis.get_ylim()[1] * 1.45)
            axis.legend(loc="upper left")
    return figure


def quality_against_bits(frame: pd.DataFrame, metric: str, reference: Mapping[str, float] | None = None) -> Figure:
    """A metric against the bit width, one line per T with its interval; rows: methods, columns: backbones.

    Args:
        frame: rows of one data set by the results contract; full precision is method FP, W32A32.
        reference: name -> value of horizontal lines, such as bicubic.
    """
    cells = frame[frame["metric"] == metric].dropna(subset=["value"])
    methods = [method for method in cells["method"].unique() if method != "FP"]
    backbones = list(cells["backbone"].unique())
    widths = [*sorted(set(cells["bits"]) - {"W32A32"}, key=lambda bits: int(bits[1 : bits.index("A")])), "W32A32"]
    with styled():
        figure, axes = plt.subplots(
            len(methods),
            len(backbones),
            figsize=(4 * len(backbones), 2.8 * len(methods)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for row, method in enumerate(methods):
            for axis, backbone in zip(axes[row], backbones, strict=True):
                part = cells[(cells["backbone"] == backbone) & cells["method"].isin([method, "FP"])]
                _bits_panel(axis, part, widths)
                for name, value in (reference or {}).items():
                    axis.axhline(value, color="#999999", ls=":", lw=1)
                    axis.text(len(widths) - 1, value, f" {name}", va="bottom", ha="right", fontsize=7, color="#777777")
                axis.set_title(f"{backbone}: {method}")
            axes[row, 0].set_ylabel(metric)
        axes[0, 0].legend(loc="lower right")
    return figure


def _bits_panel(axis, part: pd.DataFrame, widths: Sequence[str]) -> None:
    for t in sorted(part["timestep"].unique(), reverse=True):
        line = part[part["timestep"] == t].set_index("bits").reindex(widths)
        position = np.arange(len(widths))
        axis.plot(position, line["value"], "o-", color=colour(t), ms=4, label=f"T = {t}")
        axis.fill_between(
            position, line["ci_low"].astype(float), line["ci_high"].astype(float), color=colour(t), alpha=0.12, lw=0
        )
    axis.set_xticks(np.arange(len(widths)), widths, rotation=30)


def contribution_bars(frame: pd.DataFrame) -> Figure:
    """PSNR-Y with the UNet at work, with its noise set to zero, and with z_H replaced by z_L.

    Args:
        frame: rows backbone, timestep, variant, psnr_y (means over images).
    """
    variants = {"full": "#2166ac", "no noise": "#f4a582", "identity": "#bababa", "bicubic": "#4d4d4d"}
    backbones = list(frame["backbone"].unique())
    counts = [frame.loc[frame["backbone"] == backbone, "timestep"].nunique() for backbone in backbones]
    size = (1.0 + 1.1 * sum(counts), 3.2)
    with styled():
        figure, axes = plt.subplots(1, len(backbones), figsize=size, sharey=True, squeeze=False, width_ratios=counts)
        for axis, backbone in zip(axes[0], backbones, strict=True):
            part = frame[frame["backbone"] == backbone]
            timesteps = sorted(part["timestep"].unique(), reverse=True)
            for offset, (variant, bar_colour) in enumerate(variants.items()):
                values = part[part["variant"] == variant].set_index("timestep")["psnr_y"].reindex(timesteps)
                position = np.arange(len(timesteps)) + (offset - 1.5) * 0.2
                bars = axis.bar(position, values, width=0.19, color=bar_colour, label=variant)
                axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=2, rotation=90)
            axis.set_xticks(np.arange(len(timesteps)), [f"T = {t}" for t in timesteps])
            axis.set(title=backbone, ylim=(frame["psnr_y"].min() - 2, frame["psnr_y"].max() + 2))
            axis.grid(axis="x", visible=False)
        axes[0, 0].set_ylabel("PSNR-Y / dB")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(variants))
    return figure


def learning_curves(history: pd.DataFrame, baseline: float) -> Figure:
    """Validation PSNR-Y of the shipped backbones over their training.

    Args:
        history: rows backbone, timestep, step, psnr_y_bicubic.
        baseline: of bicubic upscaling on the same crops.
    """
    backbones = list(history["backbone"].unique())
    with styled():
        figure, axes = plt.subplots(1, len(backbones), figsize=(4 * len(backbones), 2.8), sharey=True, squeeze=False)
        for axis, backbone in zip(axes[0], backbones, strict=True):
            for t, line in history[history["backbone"] == backbone].groupby("timestep"):
                axis.plot(line["step"], line["psnr_y_bicubic"], "o-", ms=3, color=colour(t), label=f"T = {t}")
            axis.axhline(baseline, color="#999999", ls=":", label="bicubic")
            axis.set(title=backbone, xlabel="training step")
            axis.legend()
        axes[0, 0].set_ylabel("validation PSNR-Y / dB")
    return figure
