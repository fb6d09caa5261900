"""Figures that compare methods: all metrics at one bit width (the paper's Fig. 2), and training losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.show.figures.style import styled
from qartsr_lib.study.paper import BICUBIC, OUTSIDE

HIGHLIGHT, PLAIN, FOREIGN = "#2166ac", "#92a8c0", "#bdbdbd"
#: Lines across the bars: label -> colour.
LINES = {"full precision": "#b2182b", "bicubic": "#555555"}


def metric_panels(
    results: pd.DataFrame, metrics: Sequence[str], bits: str, highlight: str = "QArtSR", title: str = ""
) -> Figure:
    """The paper's Fig. 2 as one panel per metric: a bar and interval per method, full precision and bicubic as lines.

    A method without a value, or with one that is not finite, is marked n/a.

    Args:
        results: rows of one data set and setting by the results contract, see `reports.settings`;
            outside systems are grey bars whatever the bit width.
        metrics: those without any value are left out.
        highlight: method in a darker colour.
        title: above all panels.
    """
    results = results.assign(**{name: _finite(results[name]) for name in ("value", "ci_low", "ci_high")})
    shown = [metric for metric in metrics if results.loc[results["metric"] == metric, "value"].notna().any()]
    if not shown:
        return _empty(f"no values at {bits}")
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with styled():
        figure, axes = plt.subplots(rows, columns, figsize=(2.9 * columns, 2.3 * rows), squeeze=False, sharey=True)
        for axis, metric in zip(axes.flat, shown, strict=False):
            _metric_panel(axis, results[results["metric"] == metric], metric, bits, highlight)
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        figure.suptitle(title, fontsize=10)
        lines = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label() in LINES}
        if lines:
            figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=len(lines))
    return figure


def _metric_panel(axis: Axes, results: pd.DataFrame, metric: str, bits: str, highlight: str) -> None:
    references = (results["method"] == "FP", results["backbone"] == BICUBIC)
    levels = {label: results.loc[rows, "value"].dropna() for label, rows in zip(LINES, references, strict=True)}
    levels = {label: float(values.iloc[0]) for label, values in levels.items() if len(values)}
    foreign = results["backbone"] == OUTSIDE
    part = results[((results["bits"] == bits) | foreign) & ~references[0] & ~references[1]].iloc[::-1]
    colours = [_bar_colour(row.method == highlight, row.backbone == OUTSIDE) for row in part.itertuples()]
    axis.barh(part["method"], part["value"].fillna(0.0), color=colours, height=0.7)
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


def _bar_colour(highlighted: bool, foreign: bool) -> str:
    return HIGHLIGHT if highlighted else FOREIGN if foreign else PLAIN


def _finite(values: pd.Series) -> pd.Series:
    return values.astype(float).replace([np.inf, -np.inf], np.nan)


def _empty(text: str) -> Figure:
    with styled():
        figure, axis = plt.subplots(figsize=(4, 1))
        axis.text(0.5, 0.5, text, ha="center", va="center")
        axis.axis("off")
    return figure


def loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], quantity: str = "image_loss", title: str = ""
) -> Figure:
    """A loss against the images seen, one line per run; steps without a positive finite value are left out.

    Args:
        histories: label -> records of Finetuner.run.
        quantity: entry of the records.
        title: above the curves.
    """
    lines = {label: _points(history, quantity) for label, history in histories.items()}
    if not any(lines.values()):
        return _empty("no training")
    with styled():
        figure, axis = plt.subplots(figsize=(6.4, 3.4))
        for label, points in lines.items():
            if not points:
                continue
            images, losses = np.asarray(points, dtype=float).T
            (line,) = axis.plot(images, losses, alpha=0.25, lw=0.8)
            width = max(1, len(losses) // 12)
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            axis.plot(images[width - 1 :], smooth, color=line.get_color(), lw=1.6, label=label)
        axis.set(yscale="log", xlabel="images passed forward and backward", ylabel=quantity.replace("_", " "))
        axis.set_title(title, fontsize=8.5)
        axis.legend()
    return figure


def _points(history: Sequence[Mapping[str, float]], quantity: str) -> list[tuple[float, float]]:
    found = [(record["images"], record[quantity]) for record in history if record.get(quantity) is not None]
    return [point for point in found if np.isfinite(point[1]) and point[1] > 0]
