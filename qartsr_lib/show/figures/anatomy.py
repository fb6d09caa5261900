"""Figures of notebook 03: distributions, errors by component, errors over the network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from qartsr_lib.show.figures.style import legend_below, styled, subplots

SHADES = ("#2166ac", "#f4a582", "#bababa")


@styled
def component_bars(errors: pd.DataFrame) -> Figure:
    """Normalized output error by component: one panel per layer, one bar group per component.
    `errors`: rows layer, bits, component, error."""
    layers, widths = errors.groupby("layer", sort=False), errors["bits"].unique()
    figure, axes = subplots(1, len(layers), (3.4 * len(layers), 3.2), sharex=True, sharey=True)
    for axis, (layer, part) in zip(axes[0], layers, strict=True):
        table = part.pivot(index="component", columns="bits", values="error")
        bars = table.loc[errors["component"].unique(), widths]
        bars.plot.barh(ax=axis, color=list(SHADES[: len(widths)]), width=0.74, legend=False)
        axis.set(xscale="log", xlabel="squared error / variance", ylabel="")
        axis.set_title(_two_lines(layer), fontsize=7.5)
        axis.set_xlim(errors["error"].min() / 2, errors["error"].max() * 2)
    axes[0, 0].invert_yaxis()
    legend_below(figure, len(widths))
    return figure


@styled
def channel_ranges(ranges: Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]) -> Figure:
    """Range of every input channel before and after phi, and of the weight before and after L and phi.
    `ranges`: layer -> title of the panel -> (lowest, highest), (c_in,) each."""
    columns = max(map(len, ranges.values()))
    figure, axes = subplots(len(ranges), columns, (2.9 * columns, 2.2 * len(ranges)), sharex="row")
    for line, (layer, panels) in zip(axes, ranges.items(), strict=True):
        for axis, (title, (low, high)) in zip(line, panels.items(), strict=False):
            width = max(0.5, 60 / len(low))
            axis.vlines(np.arange(len(low)), low.numpy(), high.numpy(), color="#4393c3", lw=width)
            for level in (low.min(), high.max()):
                axis.axhline(float(level), color="#b2182b", lw=0.8, ls="--")
            axis.set_title(title, fontsize=8)
        line[0].set_ylabel(_two_lines(layer), fontsize=6.5)
    for axis in axes[-1]:
        axis.set_xlabel("input channel")
    return figure


@styled
def layer_errors(errors: pd.DataFrame, boundaries: Mapping[str, int] | None = None) -> Figure:
    """Output error of every layer alone, in inference order: one panel per bit width, one line per method.
    `errors`: rows bits, position, layer, method, error. `boundaries`: name -> first position of a part of the
    network."""
    widths = errors["bits"].unique()
    figure, axes = subplots(len(widths), 1, (8.5, 2.5 * len(widths)), sharex=True)
    for axis, bits in zip(axes[:, 0], widths, strict=True):
        part = errors[errors["bits"] == bits]
        table = part.pivot(index="position", columns="method", values="error")[part["method"].unique()]
        table.plot(ax=axis, style=".-", lw=1, ms=4, legend=False)
        for name, position in (boundaries or {}).items():
            axis.axvline(position - 0.5, color="#999999", lw=0.8, ls=":")
            axis.text(position, axis.get_ylim()[1], f" {name}", fontsize=7, va="bottom", color="#777777")
        axis.set(yscale="log", ylabel=f"{bits}\nsquared error / variance")
    axes[-1, 0].set_xlabel("layer, in inference order")
    legend_below(figure, 4)
    return figure


def _two_lines(name: str) -> str:
    """A layer's full name, broken at the dot nearest its middle."""
    dots = [index for index, letter in enumerate(name) if letter == "."]
    middle = min(dots, key=lambda index: abs(index - len(name) / 2), default=-1)
    return name[: middle + 1] + "\n" * bool(dots) + name[middle + 1 :]
