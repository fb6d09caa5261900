"""Figures of notebook 13: the error that one quantized layer makes, and what settings do to methods."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.show.figures.style import styled, subplots

#: List that a layer is on -> (name, colour); the first that fits.
CLASSES = {
    "passionsr": ("PassionSR's list", "#2166ac"),
    "identity-path": ("identity path", "#b2182b"),
    "": ("all other layers", "#999999"),
}


def layer_class(lists: pd.Series) -> pd.Series:
    """Key of CLASSES for each text of lists."""
    return lists.map(lambda names: next(key for key in CLASSES if key in names.split() or not key))


@styled
def sensitivity(rows: pd.DataFrame, ranges: str) -> Figure:
    """Error of the image with one layer quantized: a row of panels per tensor and width, a column per backbone.

    Args:
        rows: of `experiments.sensitivity.measure_sensitivity`.
        ranges: the range rule of inputs that is shown.
    """
    shown = rows[rows["quantized"].str.startswith("W") | (rows["ranges"] == ranges)]
    shown = shown.assign(kind=layer_class(shown["on_lists"].fillna("")))
    cases = sorted(set(shown["quantized"]), key=lambda case: (-int(case[1]), -ord(case[0])))  # W4, A4, W2, A2
    models = list(dict.fromkeys(shown["backbone"]))
    smallest = shown.loc[shown["error"] > 0, "error"].min()
    size = (4.6 * len(models), 1.9 * len(cases))
    figure, axes = subplots(len(cases), len(models), size, sharex=True, sharey=True)
    for line, case in zip(axes, cases, strict=True):
        for axis, model in zip(line, models, strict=True):
            part = shown[(shown["quantized"] == case) & (shown["backbone"] == model)]
            for key, (name, colour) in CLASSES.items():
                layers = part[part["kind"] == key]
                share = layers["error"].sum() / part["error"].sum()
                label = f"{name}: {share:.1%} of the sum"
                axis.scatter(layers["position"], layers["error"], s=12, color=colour, label=label, zorder=2)
            axis.set(yscale="log", ylim=(smallest / 3, 30 * shown["error"].max()))
            axis.set_title(f"{model}, only {case} of one layer", fontsize=8.5)
            axis.legend(fontsize=6.5, loc="upper center", handletextpad=0.2, borderaxespad=0.2, frameon=True)
        line[0].set_ylabel("MSE of the image")
    for axis in axes[-1]:
        axis.set_xlabel("layer, in inference order")
    return figure
