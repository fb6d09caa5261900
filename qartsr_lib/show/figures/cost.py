"""Figures of cost: where weights and operations sit, what bits are spent on, and quality against time and size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from qartsr_lib.show.figures.style import legend_below, styled, subplots

PART_COLOURS = {"VAE encoder": "#4393c3", "UNet": "#d6604d", "VAE decoder": "#1b7837"}
#: Colour-blind safe; the last component of a figure in grey.
COMPONENT_COLOURS = ("#2166ac", "#92c5de", "#762a83", "#e08214", "#fdb863", "#b2182b", "#bababa")
METHOD_COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#762a83", "#e08214")
#: Of `time_by_block`, in the order of its bars; what integers alone do between two products in the colours of warning.
PASS_COLOURS = {
    "product": "#2166ac",
    "attention": "#762a83",
    "norm": "#92c5de",
    "activation": "#1b7837",
    "encode": "#e08214",
    "finish": "#b2182b",
    "rest": "#bababa",
}
MARKERS = {"fp32": "o", "fp32, memory kept": "X", "fp32, compiled": "P", "bf16": "D", "simulate": "v", "int8": "s"}
#: Where a label may stand, in points from its marker's middle: (right, up, alignment of the text).
PLACES = (
    *((5, 4, "left"), (-5, 4, "right"), (0, 7, "center"), (5, -11, "left"), (-5, -11, "right")),
    *((0, 16, "center"), (0, -14, "center"), (5, -20, "left"), (-5, -20, "right")),
)
REACH = 4  # points from a marker's middle to its edge


@styled
def cost_by_block(parts: pd.DataFrame) -> Figure:
    """Weights (left) and operations (right) of every block in inference order, coloured by part.
    `parts`: of one network, counting.measure_parts."""
    position, colours = np.arange(len(parts)), parts["part"].map(PART_COLOURS)
    figure, (axes,) = subplots(1, 2, (8.6, 0.21 * len(parts) + 1.1), sharey=True)
    # Legends stand where the bars are short: below in the UNet's weights, in the middle of the operations.
    for axis, column, unit, place in (
        (axes[0], "weights_M", "M weights", "lower right"),
        (axes[1], "layer_ops_G", "G operations", "center right"),
    ):
        axis.barh(position, parts[column], color=colours, height=0.75)
        total = parts[column].sum()
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=PART_COLOURS[part], label=f"{part}: {100 * share / total:.0f} %")
            for part, share in parts.groupby("part", sort=False)[column].sum().items()
        ]
        if axis is axes[1]:
            label = "attention products (the paper leaves them out)"
            extra = parts["attention_ops_G"]
            handles.append(axis.barh(position, extra, 0.75, parts[column], color="#444444", label=label))
        axis.legend(handles=handles, loc=place, title="convolutions and linear layers")
        axis.set_xlabel(unit)
        axis.grid(axis="y", visible=False)
        axis.set_xlim(left=0)
        axis.margins(y=0.01)
    _name_blocks(axes[0], parts["block"])
    return figure


def _name_blocks(axis: Axes, blocks: pd.Series) -> None:
    """Bars from the top in inference order, each with its block's name."""
    names = {r"^vae\.encoder\.": "encoder ", r"^vae\.decoder\.": "decoder ", r"^unet\.": "unet ", r"^vae\.": ""}
    axis.set_yticks(range(len(blocks)), blocks.replace(names, regex=True), fontsize=7.5)
    axis.invert_yaxis()
    axis.set_ylabel("block, in inference order")


@styled
def time_by_block(rows: pd.DataFrame) -> Figure:
    """Milliseconds of every block in inference order, stacked by pass; a panel for each network, on one scale.
    `rows`: of one backbone and T, experiments.passes.measure_passes."""
    networks = list(rows.groupby(["method", "bits", "runtime"], sort=False))
    order = list(dict.fromkeys(rows["block"]))
    figure, (axes,) = subplots(1, len(networks), (2.2 + 2.1 * len(networks), 0.21 * len(order) + 1.4), sharey=True)
    longest = rows.groupby(["method", "bits", "runtime", "block"])["ms"].sum().max()
    for axis, ((method, bits, runtime), part) in zip(axes, networks, strict=True):
        table = part.pivot(index="block", columns="pass", values="ms").reindex(order).fillna(0.0)
        left = pd.Series(0.0, order)
        for name, colour in PASS_COLOURS.items():
            if name in table:
                axis.barh(range(len(order)), table[name], 0.75, left, color=colour)
                left = left + table[name]
        title = "full precision" if method == "FP" else f"{method} {bits}"
        axis.set(title=f"{title}\n{runtime}: {left.sum():.0f} ms", xlabel="ms", xlim=(0, 1.03 * longest))
        axis.grid(axis="y", visible=False)
    axes[0].margins(y=0.01)
    _name_blocks(axes[0], pd.Series(order))
    shown = [name for name in PASS_COLOURS if name in set(rows["pass"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PASS_COLOURS[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@styled
def cost_components(components: pd.DataFrame, table: pd.DataFrame, bits: Sequence[str]) -> Figure:
    """What the honest rule counts, stacked, with the paper's rule as a mark; left storage, right operations.
    `components`: rows of one method, counting.measure_components; `table`: Table 2 by both rules; `bits`: bars.
    """
    rule = table[table["rule"] == "paper"].set_index("bits").loc[list(bits)]
    figure, (axes,) = subplots(1, 2, (8.6, 0.42 * len(bits) + 1.7), sharey=True)
    sums = components.groupby("component", sort=False)[["params_M", "ops_G"]].sum().sum(axis=1)
    colours = {name: colour for (name, total), colour in zip(sums.items(), COMPONENT_COLOURS, strict=True) if total}
    units = (("params_M", "M parameters of 32 bits"), ("ops_G", "G operations of 32 bits"))
    for axis, (column, unit) in zip(axes, units, strict=True):
        values = components.pivot(index="bits", columns="component", values=column).loc[list(bits), list(colours)]
        values.plot.barh(ax=axis, stacked=True, color=colours, width=0.66, legend=False)
        axis.plot(rule[column], range(len(bits)), "D", color="#111111", mfc="white", ms=5, label="the paper's rule")
        axis.set(xlabel=unit, ylabel="")
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    legend_below(figure, 4)
    return figure


@styled
def deployment_scatter(rows: pd.DataFrame) -> Figure:
    """PSNR against milliseconds (left) and against megabytes on disk (right); up and left is better.
    `rows`: of one backbone and T, experiments.deployment.COLUMNS; those that were not timed are left out."""
    rows = rows.dropna(subset=["latency_ms"])
    methods = sorted(set(rows["method"]) - {"FP"}, key=lambda method: (method != "QArtSR", method))
    colours = {"FP": "#111111"} | dict(zip(methods, cycle(METHOD_COLOURS), strict=False))
    sizes = rows[rows["runtime"].isin(["fp32", "bf16", "int8"])]
    figure, ((time, size),) = subplots(1, 2, (8.6, 4.2), sharey=True)
    for axis, part, column in ((time, rows, "latency_ms"), (size, sizes, "file_MB")):
        for row in part.itertuples():
            colour = colours[row.method]
            face = "none" if row.runtime == "simulate" else colour
            place = (getattr(row, column), row.psnr_y)
            axis.scatter(*place, marker=MARKERS[row.runtime], s=42, edgecolor=colour, facecolor=face)
    time.set(xlabel="milliseconds per image, median", ylabel="PSNR-Y, dB")
    size.set(xlabel="MB on disk", xscale="log")
    size.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    size.xaxis.set_major_formatter("{x:g}")
    size.xaxis.set_minor_locator(NullLocator())
    time.margins(y=0.1)
    kinds = [kind for kind in MARKERS if kind in set(rows["runtime"])]
    marks = [("o", colour, name) for name, colour in colours.items()] + [(MARKERS[k], "#777777", k) for k in kinds]
    handles = [plt.Line2D([], [], ls="", marker=marker, color=colour, label=name) for marker, colour, name in marks]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(colours) + len(kinds) // 2)
    integers = rows[(rows["runtime"] == "int8") & (rows["method"] != "FP")]
    for axis, column in ((time, "latency_ms"), (size, "file_MB")):
        places = integers[[column, "psnr_y", "bits", "method"]].itertuples(index=False, name=None)
        _label_points(axis, [(x, y, bits, colours[method]) for x, y, bits, method in places])
    return figure


def _label_points(axis: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a text beside each point, at the first place that hides no point and no earlier text; else at the first.
    `axis`: has all that it will show, in its final limits. `labels`: x, y, text, colour."""
    axis.figure.canvas.draw()
    reach = REACH * axis.figure.dpi / 72
    middles = [axis.transData.transform((x, y)) for x, y, _, _ in labels]
    taken = [Bbox.from_bounds(x - reach, y - reach, 2 * reach, 2 * reach) for x, y in middles]
    for x, y, text, colour in labels:
        shown = axis.annotate(text, (x, y), (0, 0), textcoords="offset points", fontsize=7, color=colour)

        def put(place: tuple[float, float, str], shown=shown) -> Bbox:
            shown.set_position(place[:2])
            shown.set_horizontalalignment(place[2])
            return shown.get_window_extent()

        free = (place for place in PLACES if not any(put(place).overlaps(other) for other in taken))
        taken.append(put(next(free, PLACES[0])))
