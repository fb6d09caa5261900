"""Figures of notebook 07: what a model is worth against what it takes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.figures.style import styled

COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#762a83", "#e08214")
MARKERS = {"fp32": "o", "fp32, memory kept": "X", "fp32, compiled": "P", "bf16": "D", "simulate": "v", "int8": "s"}
FULL_COLOUR = "#111111"


def deployment_scatter(rows: pd.DataFrame) -> Figure:
    """PSNR against milliseconds (left) and against megabytes on disk (right); up and left is better.

    Args:
        rows: of one backbone and T, deploy.measurement.COLUMNS; those that were not timed are left out.
    """
    rows = rows.dropna(subset=["latency_ms"])
    methods = [method for method in rows["method"].unique() if method != "FP"]
    colours = {"FP": FULL_COLOUR} | dict(zip(methods, COLOURS, strict=False))
    sizes = rows[rows["runtime"].isin(["fp32", "bf16", "int8"])]
    with styled():
        figure, (time, size) = plt.subplots(1, 2, figsize=(8.6, 3.8), sharey=True)
        for axis, part, column in ((time, rows, "latency_ms"), (size, sizes, "file_MB")):
            for row in part.itertuples():
                marker, colour = MARKERS[row.runtime], colours[row.method]
                hollow = "none" if row.runtime == "simulate" else colour
                axis.scatter(getattr(row, column), row.psnr_y, marker=marker, s=42, edgecolor=colour, facecolor=hollow)
                if row.method != "FP" and row.runtime == "int8":
                    where = (getattr(row, column), row.psnr_y)
                    axis.annotate(row.bits, where, (4, 4), textcoords="offset points", fontsize=7, color=colour)
        time.set_xlabel("milliseconds per image, median")
        size.set_xlabel("MB on disk")
        size.set_xscale("log")
        time.set_ylabel("PSNR-Y, dB")
        dots = [plt.Line2D([], [], ls="", marker="o", color=colour, label=name) for name, colour in colours.items()]
        kinds = dict.fromkeys(rows["runtime"])
        shapes = [plt.Line2D([], [], ls="", marker=MARKERS[kind], color="#777777", label=kind) for kind in kinds]
        size.legend(handles=dots, loc="center right")
        time.legend(handles=shapes, loc="center right")
    return figure
