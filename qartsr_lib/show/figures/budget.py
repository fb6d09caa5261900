"""Figure of the budget: how near each trained method comes to full precision, and from how many images."""

from __future__ import annotations

import re
from itertools import product

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qartsr_lib.show.figures.quality import HIGHLIGHT, LINES
from qartsr_lib.show.figures.style import empty, styled, subplots

OURS = "QArtSR"
#: Of other trained methods, in the order of their rows (Okabe and Ito, then more); dashes of untrained ones, in grey.
COLOURS = ("#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31", "#000000", "#999999")
MARKERS = "osD^v"
DASHES = ("-", "--", "-.", ":", (0, (1, 3)), (0, (6, 3)))
NEAR = 0.1  # around zero the scale is linear
TICKS = (-10, -3, -1, -0.3, -0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3, 10)


@styled
def budget_curves(rows: pd.DataFrame, metric: str, setting: str) -> Figure:
    """A metric minus full precision's against the training images: a line per trained method, untrained ones level.

    Panels: a backbone and data set (rows), a bit width (columns), those alone where something was trained longer. The
    scale is logarithmic beyond NEAR; QArtSR is darker.

    Args:
        rows: by the results contract, methods by `setting_grids.setting_label`; the others but FP are left out.
        setting: Setting.label of the rows that are shown.
    """
    cells = rows[rows["metric"] == metric].dropna(subset=["value"])
    levels = cells[cells["method"] == "FP"].set_index(["backbone", "dataset"])["value"].astype(float)
    pattern = rf"^(?P<name>.*) \[{re.escape(setting)}(?P<longer>, \d+x images)?\]$"
    cells = cells.join(cells["method"].str.extract(pattern)).dropna(subset=["name"])
    panels = cells[cells["longer"].notna()].drop_duplicates(["backbone", "dataset", "bits"])
    if panels.empty or levels.empty:
        return empty("no method was trained for two budgets")
    places = list(dict.fromkeys(zip(panels["backbone"], panels["dataset"], strict=True)))
    widths = [bits for bits in dict.fromkeys(cells["bits"]) if bits in set(panels["bits"])]
    size = (4.2 * len(widths), 2.6 * len(places))
    figure, axes = subplots(len(places), len(widths), size, sharex=True, sharey=True)
    looks = _looks(cells)
    for line, place in zip(axes, places, strict=True):
        for axis, bits in zip(line, widths, strict=True):
            part = cells[(cells["backbone"] == place[0]) & (cells["dataset"] == place[1]) & (cells["bits"] == bits)]
            for name, points in part.groupby("name", sort=False):
                gap = points.set_index("steps")["value"].astype(float).sort_index() - levels[place]
                if looks[name]["trained"]:
                    axis.plot(gap.index, gap, label=name, **looks[name]["style"])
                else:
                    axis.axhline(gap.iloc[0], label=name, **looks[name]["style"])
            axis.axhline(0, color=LINES["full precision"], lw=1)
            axis.set_xscale("log", base=2)
            axis.set_yscale("symlog", linthresh=NEAR)
            axis.yaxis.set_major_locator(FixedLocator(TICKS))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(f"{place[0]}, {place[1]}: {bits}")
        line[0].set_ylabel(f"{metric} - full precision's")
    for axis in axes[-1]:
        axis.set_xlabel("training images")
    known = {text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4)
    return figure


def _looks(cells: pd.DataFrame) -> dict[str, dict]:
    """Name -> whether it was trained, and how its line is drawn."""
    trained = cells.groupby("name", sort=False)["steps"].max() > 0
    looks, points, dashes = {}, product(MARKERS, COLOURS), iter(DASHES * 9)  # no two trained methods look alike
    for name, learns in trained.items():
        if name == OURS:
            style = {"color": HIGHLIGHT, "lw": 2.4, "marker": "o", "ms": 5, "zorder": 3}
        elif learns:
            marker, shade = next(points)
            style = {"color": shade, "lw": 1.2, "marker": marker, "ms": 3.5}
        else:
            style = {"color": "#666666", "lw": 0.9, "ls": next(dashes)}
        looks[name] = {"trained": bool(learns), "style": style}
    return looks
