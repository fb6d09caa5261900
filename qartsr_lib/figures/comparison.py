"""Figures that compare methods: all metrics at one bit width (the paper's Fig. 2), and training losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.figures.style import styled
from qartsr_lib.tables import LOWER_IS_BETTER

HIGHLIGHT, PLAIN = "#2166ac", "#92a8c0"


def metric_panels(results: pd.DataFrame, metrics: Sequence[str], bits: str, highlight: str = "QArtSR") -> Figure:
    """The paper's Fig. 2 as one panel per metric: a bar and interval per method, full precision as a line.

    Args:
        results: rows of one data set, backbone and T by the results contract.
        metrics: those without a value are left out.
        highlight: method in a darker colour.
    """
    shown = [metric for metric in metrics if results.loc[results["metric"] == metric, "value"].notna().any()]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with styled():
        figure, axes = plt.subplots(rows, columns, figsize=(2.9 * columns, 2.3 * rows), squeeze=False, sharey=True)
        for axis, metric in zip(axes.flat, shown, strict=False):
            part = results[results["metric"] == metric]
            full = part.loc[part["method"] == "FP", "value"]
            part = part[part["bits"] == bits].iloc[::-1]
            colours = [HIGHLIGHT if method == highlight else PLAIN for method in part["method"]]
            axis.barh(part["method"], part["value"], color=colours, height=0.7)
            spread = part[["ci_low", "ci_high"]].astype(float).to_numpy()
            for position, (low, high) in enumerate(spread):
                axis.plot([low, high], [position, position], color="#333333", lw=1)
            if len(full):
                axis.axvline(float(full.iloc[0]), color="#b2182b", ls="--", lw=1)
            arrow = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
            axis.set_title(f"{metric} ({arrow})", fontsize=8.5)
            lowest = np.nanmin([*spread[:, 0], *part["value"], *full])
            highest = np.nanmax([*spread[:, 1], *part["value"], *full])
            margin = 0.08 * (highest - lowest or 1.0)
            axis.set_xlim(max(0.0, lowest - 3 * margin) if lowest >= 0 else lowest - margin, highest + margin)
            axis.grid(axis="y", visible=False)
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
    return figure


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], quantity: str = "image_loss") -> Figure:
    """A loss against the images seen, one line per run; steps without it are left out.

    Args:
        histories: label -> records of Finetuner.run.
        quantity: entry of the records.
    """
    with styled():
        figure, axis = plt.subplots(figsize=(6.4, 3.4))
        for label, history in histories.items():
            points = [(record["images"], record[quantity]) for record in history if quantity in record]
            if not points:
                continue
            images, losses = np.asarray(points, dtype=float).T
            (line,) = axis.plot(images, losses, alpha=0.25, lw=0.8)
            width = max(1, len(losses) // 12)
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            axis.plot(images[width - 1 :], smooth, color=line.get_color(), lw=1.6, label=label)
        axis.set(yscale="log", xlabel="images passed forward and backward", ylabel=quantity.replace("_", " "))
        axis.legend()
    return figure
