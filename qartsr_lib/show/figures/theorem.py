"""Figures of notebook 01: the schedule, the error of z_H over T, what the UNet contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.backbones import schedule
from qartsr_lib.show.figures.style import colour, legend_below, styled, subplots
from qartsr_lib.study.experiments import theorem
from qartsr_lib.study.stats import mean_interval

#: Law -> name, colour, style of its line.
LAWS = {
    "a": (r"(a) paper: $\sqrt{1-\alpha_T}$", "#777777", ":"),
    "b": (r"(b) Eq. 6: $\sqrt{(1-\alpha_T)/\alpha_T}$", "#111111", "--"),
    "c": (r"(c) constant $\rho$", "#1b7837", "-"),
}
VARIANTS = {"full": "#2166ac", "no noise": "#f4a582", "identity": "#bababa", "bicubic": "#4d4d4d"}


@styled
def schedule_curves() -> Figure:
    """The paper's Fig. 5, alpha_T and lambda, and beside it what Eq. (6) does to errors."""
    labels = np.arange(1, schedule.NUM_STEPS + 1)
    alpha, paper, noise, latent = (
        [function(t) for t in labels]
        for function in (schedule.alpha, theorem.paper_lambda, theorem.noise_gain, theorem.latent_gain)
    )
    figure, ((left, right),) = subplots(1, 2, (8, 3))
    left.plot(labels, alpha, color="#1b7837", label=r"$\alpha_T$")
    left.plot(labels, paper, color="#762a83", label=r"$\lambda=\sqrt{1-\alpha_T}$")
    left.set(xlabel="timestep T", title="The paper's Fig. 5, from the schedule", xlim=(1, 1000))
    left.legend()
    right.semilogy(labels, paper, color="#762a83", label=r"$\lambda$ (paper)")
    right.semilogy(labels, noise, "k--", label=r"$\sqrt{(1-\alpha_T)/\alpha_T}$: error of $\epsilon$")
    right.semilogy(labels, latent, color="#e08214", label=r"$1/\sqrt{\alpha_T}$: error of $z_L$")
    for t in schedule.PAPER_TIMESTEPS:
        right.plot(t, theorem.noise_gain(t), "o", color=colour(t), ms=5)
    right.set(xlabel="timestep T", title=r"What Eq. (6) multiplies errors by on the way to $z_H$", xlim=(-15, 1015))
    right.legend()
    return figure


@styled
def theorem_laws(frame: pd.DataFrame, fits: Mapping[tuple[str, str], Sequence[theorem.LawFit]]) -> Figure:
    """Measured error of z_H against T with the three fitted laws; rows: backbones, columns: bit widths.
    `frame`: rows backbone, bits, timestep, image, error_z_h, required_change. `fits`: (backbone, bits) -> the three
    fits."""
    backbones, widths = frame["backbone"].unique(), frame["bits"].unique()
    size = (2.5 * len(widths) + 0.6, 2.6 * len(backbones))
    figure, axes = subplots(len(backbones), len(widths), size, sharey="row")
    for line, backbone in zip(axes, backbones, strict=True):
        for axis, bits in zip(line, widths, strict=True):
            cell = frame[(frame["backbone"] == backbone) & (frame["bits"] == bits)]
            _one_law_panel(axis, cell, fits[backbone, bits])
            axis.set_title(f"{backbone}, {bits}")
        line[0].set_ylabel(r"RMS error of $z_H$")
    for axis in axes[-1]:
        axis.set_xlabel("timestep T")
    return figure


def _one_law_panel(axis, cell: pd.DataFrame, fits: Sequence[theorem.LawFit]) -> None:
    """Laws and points are geometric means over images, as the constants were fitted."""
    timesteps = sorted(cell["timestep"].unique())
    for fit in fits:
        law = np.array([10 ** np.log10(theorem.LAWS[fit.law](cell[cell["timestep"] == t])).mean() for t in timesteps])
        name, shade, style = LAWS[fit.law]
        label = f"{name}, off by {10**fit.log10_residual:.2f}x" if len(timesteps) > 1 else name
        axis.plot(timesteps, fit.constant * law, style, color=shade, label=label, lw=1.3)
    for t in timesteps:
        mean, low, high = 10 ** np.array(mean_interval(np.log10(cell.loc[cell["timestep"] == t, "error_z_h"])))
        error = np.nan_to_num([[mean - low], [high - mean]], nan=0.0).clip(min=0)
        axis.errorbar(t, mean, error, fmt="o", ms=5, color=colour(t), capsize=3)
    axis.set_yscale("log")
    axis.set_xticks(timesteps)
    axis.legend(fontsize=5.5)  # in every panel, as each has fits of its own


@styled
def error_histograms(errors: Mapping[str, Mapping[int, np.ndarray]]) -> Figure:
    """Distribution of the size of z_H's quantization error, one panel per backbone, one outline per T.
    `errors`: backbone -> timestep -> flat array of errors."""
    figure, axes = subplots(1, len(errors), (4 * len(errors), 2.8))
    for axis, (backbone, by_timestep) in zip(axes[0], errors.items(), strict=True):
        sizes = {t: np.abs(values)[values != 0] for t, values in by_timestep.items()}
        low = min(np.percentile(size, 1) for size in sizes.values())
        bins = np.geomspace(low, max(size.max() for size in sizes.values()), 81)
        for t, size in sizes.items():
            label = f"T = {t}, RMS {np.sqrt(np.mean(by_timestep[t] ** 2)):.3g}"
            share = np.full(len(size), 100.0 / len(size))
            axis.hist(size, bins=bins, weights=share, histtype="step", color=colour(t), label=label, lw=1.4)
        axis.set(title=backbone, xscale="log", xlabel=r"|quantization error of $z_H$|", ylabel="share of values / %")
        axis.set_ylim(top=axis.get_ylim()[1] * 1.45)
        axis.legend(loc="upper left")
    return figure


@styled
def contribution_bars(frame: pd.DataFrame) -> Figure:
    """PSNR-Y with the UNet at work, with its noise set to zero, and with z_H replaced by z_L.
    `frame`: rows backbone, timestep, variant, psnr_y (means over images)."""
    backbones = frame["backbone"].unique()
    counts = [frame.loc[frame["backbone"] == backbone, "timestep"].nunique() for backbone in backbones]
    size = (1.0 + 1.1 * sum(counts), 3.2)
    figure, axes = subplots(1, len(backbones), size, sharey=True, width_ratios=counts)
    for axis, backbone in zip(axes[0], backbones, strict=True):
        part = frame[frame["backbone"] == backbone]
        table = part.pivot(index="timestep", columns="variant", values="psnr_y").sort_index(ascending=False)
        table = table.rename(index="T = {}".format)[list(VARIANTS)]
        table.plot.bar(ax=axis, color=VARIANTS, width=0.78, rot=0, legend=False, xlabel="")
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=2, rotation=90)
        axis.set(title=backbone, ylim=(frame["psnr_y"].min() - 2, frame["psnr_y"].max() + 2))
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("PSNR-Y / dB")
    legend_below(figure, len(VARIANTS))
    return figure
