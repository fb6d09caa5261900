"""Figures of quality: all metrics at one bit width (the paper's Fig. 2), PSNR over bits, and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.show.figures.style import colour, empty, styled, subplots
from qartsr_lib.study.paper import BICUBIC, OUTSIDE

HIGHLIGHT, PLAIN, FOREIGN = "#2166ac", "#92a8c0", "#bdbdbd"
#: Lines across the bars: label -> colour.
LINES = {"full precision": "#b2182b", "bicubic": "#555555"}


@styled
def metric_panels(results: pd.DataFrame, metrics: Sequence[str], bits: str, title: str = "") -> Figure:
    """The paper's Fig. 2 as one panel per metric: a bar and interval per method, full precision and bicubic as lines.

    QArtSR is darker; outside systems are grey, whatever the bit width; a method without a finite value is marked n/a.
    `results`: rows of one data set and setting, see `tables.table_parts`; `metrics` without any value are left out.
    """
    numbers = ["value", "ci_low", "ci_high"]
    results = results.assign(**results[numbers].astype(float).replace([np.inf, -np.inf], np.nan))
    shown = [metric for metric in metrics if results.loc[results["metric"] == metric, "value"].notna().any()]
    quantized = (results["bits"] == bits) & (results["method"] != "FP") & (results["backbone"] != BICUBIC)
    bars = results[quantized | (results["backbone"] == OUTSIDE)]
    methods = bars["method"].unique()[::-1]  # of every panel
    if not shown or bars.empty:
        return empty(f"no values at {bits}")
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = subplots(rows, columns, (2.9 * columns, 2.3 * rows), sharey=True)
    for axis, metric in zip(axes.flat, shown, strict=False):
        part = bars[bars["metric"] == metric].set_index("method").reindex(methods)
        _metric_panel(axis, results[results["metric"] == metric], part, metric)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.suptitle(title, fontsize=10)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label() in LINES}
    if lines:
        figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=len(lines))
    return figure


def _metric_panel(axis: Axes, results: pd.DataFrame, part: pd.DataFrame, metric: str) -> None:
    """`part`: rows of the bars, by method, without values where a method has none."""
    references = (results["method"] == "FP", results["backbone"] == BICUBIC)
    levels = {label: results.loc[rows, "value"].dropna() for label, rows in zip(LINES, references, strict=True)}
    levels = {label: float(values.iloc[0]) for label, values in levels.items() if len(values)}
    colours = np.select([part.index == "QArtSR", part["backbone"] == OUTSIDE], [HIGHLIGHT, FOREIGN], PLAIN)
    axis.barh(part.index, part["value"].fillna(0.0), color=colours, height=0.7)
    spread = part[["ci_low", "ci_high"]].to_numpy()
    for position, (low, high) in enumerate(spread):
        axis.plot([low, high], [position, position], color="#333333", lw=1)
    for label, level in levels.items():
        axis.axvline(level, color=LINES[label], ls="--", lw=1, label=label)
    arrow = "lower is better" if lower_is_better(metric) else "higher is better"
    axis.set_title(f"{metric} ({arrow})", fontsize=8.5)
    present = [value for value in (*spread.flat, *part["value"], *levels.values()) if np.isfinite(value)]
    lowest, highest = min(present), max(present)
    margin = 0.08 * (highest - lowest or 1.0)
    left = max(0.0, lowest - 3 * margin) if lowest >= 0 else lowest - margin
    axis.set_xlim(left, highest + margin)
    for position in np.flatnonzero(part["value"].isna()):
        axis.text(left + margin / 4, position, "n/a", va="center", fontsize=7, color="#666666")
    axis.grid(axis="y", visible=False)


@styled
def quality_against_bits(frame: pd.DataFrame, metric: str) -> Figure:
    """A metric against the bit width, one line per T with its interval; rows: methods, columns: backbones.
    `frame`: rows of one data set by the results contract; full precision is method FP, W32A32."""
    cells = frame[frame["metric"] == metric].dropna(subset=["value"])
    methods = [method for method in cells["method"].unique() if method != "FP"]
    if not methods:
        return empty("nothing was quantized")
    backbones = cells["backbone"].unique()
    widths = sorted({*cells["bits"], "W32A32"}, key=lambda bits: [int(width) for width in bits[1:].split("A")])
    size = (4 * len(backbones), 2.8 * len(methods))
    figure, axes = subplots(len(methods), len(backbones), size, sharex=True, sharey=True)
    for row, method in zip(axes, methods, strict=True):
        for axis, backbone in zip(row, backbones, strict=True):
            part = cells[(cells["backbone"] == backbone) & cells["method"].isin([method, "FP"])]
            for t in sorted(part["timestep"].unique(), reverse=True):
                line = part[part["timestep"] == t].set_index("bits")[["value", "ci_low", "ci_high"]].reindex(widths)
                value, low, high = line.astype(float).to_numpy().T
                axis.plot(widths, value, "o-", color=colour(t), ms=4, label=f"T = {t}")
                axis.fill_between(widths, low, high, color=colour(t), alpha=0.12, lw=0)
            axis.tick_params("x", rotation=30)
            axis.set_title(f"{backbone}: {method}")
        row[0].set_ylabel(metric)
    axes[0, 0].legend(loc="lower right")
    return figure


@styled
def loss_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], title: str = "") -> Figure:
    """The image loss against the images seen, one line per run; steps without a positive finite value are left out.
    `histories`: label -> records of Finetuner.run."""
    lines = {}
    for label, history in histories.items():
        points = [(record["images"], record.get("image_loss", np.nan)) for record in history]
        points = [point for point in points if np.isfinite(point[1]) and point[1] > 0]
        lines |= {label: np.array(points, dtype=float).T} if points else {}
    if not lines:
        return empty("no training")
    figure, ((axis,),) = subplots(1, 1, (6.4, 3.4))
    for label, (images, losses) in lines.items():
        (line,) = axis.plot(images, losses, alpha=0.25, lw=0.8)
        width = max(1, len(losses) // 12)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(images[width - 1 :], smooth, color=line.get_color(), lw=1.6, label=label)
    axis.set(yscale="log", xlabel="images passed forward and backward", ylabel="image loss")
    axis.set_title(title, fontsize=8.5)
    axis.legend()
    return figure


@styled
def learning_curves(history: pd.DataFrame, baseline: float) -> Figure:
    """Validation PSNR-Y of the shipped backbones over their training.
    `history`: rows backbone, timestep, step, psnr_y_bicubic. `baseline`: of bicubic upscaling on the same crops."""
    groups = history.groupby("backbone", sort=False)
    figure, axes = subplots(1, len(groups), (4 * len(groups), 2.8), sharey=True)
    for axis, (backbone, part) in zip(axes[0], groups, strict=True):
        for t, line in part.groupby("timestep"):
            axis.plot(line["step"], line["psnr_y_bicubic"], "o-", ms=3, color=colour(t), label=f"T = {t}")
        axis.axhline(baseline, color="#999999", ls=":", label="bicubic")
        axis.set(title=backbone, xlabel="training step")
        axis.legend()
    axes[0, 0].set_ylabel("validation PSNR-Y / dB")
    return figure
