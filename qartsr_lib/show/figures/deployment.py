"""Figures of notebook 07: what a model is worth against what it takes."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from qartsr_lib.show.figures.labels import label_points
from qartsr_lib.show.figures.style import styled

COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#762a83", "#e08214")
MARKERS = {"fp32": "o", "fp32, memory kept": "X", "fp32, compiled": "P", "bf16": "D", "simulate": "v", "int8": "s"}
FULL_COLOUR, OURS = "#111111", "QArtSR"


def deployment_scatter(rows: pd.DataFrame) -> Figure:
    """PSNR against milliseconds (left) and against megabytes on disk (right); up and left is better.

    Args:
        rows: of one backbone and T, deploy.measurement.COLUMNS; those that were not timed are left out.
    """
    rows = rows.dropna(subset=["latency_ms"])
    methods = sorted(set(rows["method"]) - {"FP"}, key=lambda method: (method != OURS, method))
    colours = {"FP": FULL_COLOUR} | dict(zip(methods, cycle(COLOURS), strict=False))
    sizes = rows[rows["runtime"].isin(["fp32", "bf16", "int8"])]
    with styled():
        figure, (time, size) = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True, layout="constrained")
        for axis, part, column in ((time, rows, "latency_ms"), (size, sizes, "file_MB")):
            for row in part.itertuples():
                marker, colour = MARKERS[row.runtime], colours[row.method]
                hollow = "none" if row.runtime == "simulate" else colour
                axis.scatter(getattr(row, column), row.psnr_y, marker=marker, s=42, edgecolor=colour, facecolor=hollow)
        time.set_xlabel("milliseconds per image, median")
        size.set_xlabel("MB on disk")
        size.set_xscale("log")
        size.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        size.xaxis.set_major_formatter("{x:g}")
        size.xaxis.set_minor_locator(NullLocator())
        time.set_ylabel("PSNR-Y, dB")
        time.margins(y=0.1)
        dots = [plt.Line2D([], [], ls="", marker="o", color=colour, label=name) for name, colour in colours.items()]
        kinds = [kind for kind in MARKERS if kind in set(rows["runtime"])]
        shapes = [plt.Line2D([], [], ls="", marker=MARKERS[kind], color="#777777", label=kind) for kind in kinds]
        figure.legend(handles=[*dots, *shapes], loc="outside upper center", ncols=len(dots) + len(shapes) // 2)
        integers = rows[(rows["runtime"] == "int8") & (rows["method"] != "FP")]
        for axis, column in ((time, "latency_ms"), (size, "file_MB")):
            places = zip(integers[column], integers["psnr_y"], integers["bits"], integers["method"], strict=True)
            label_points(axis, [(x, y, bits, colours[method]) for x, y, bits, method in places])
    return figure
