"""One look for all figures, and the way they are saved."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from qartsr_lib.base import paths
from qartsr_lib.base.files import write_atomically

#: One colour per timestep label, from warm (large T) to cold (T = 1); colour-blind safe.
TIMESTEP_COLOURS = {1000: "#b2182b", 750: "#d6604d", 500: "#e08214", 250: "#80b1d3", 100: "#4393c3", 1: "#2166ac"}
#: Line styles of the three laws of notebook 01.
LAW_STYLES = {"a": ("#777777", ":"), "b": ("#111111", "--"), "c": ("#1b7837", "-")}

DPI = 150
SETTINGS = {
    "figure.dpi": 100,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}


def styled():
    """Context manager that applies the study's matplotlib settings."""
    return mpl.rc_context(SETTINGS)


def colour(timestep: int) -> str:
    """The colour of a timestep label; grey for labels outside the study."""
    return TIMESTEP_COLOURS.get(timestep, "#555555")


def save(figure: Figure, profile: str, name: str) -> Path:
    """Write figures/<profile>/<name>.png, atomically and without a time stamp."""
    path = paths.figures_dir(profile) / f"{name}.png"
    options = {"format": "png", "dpi": DPI, "bbox_inches": "tight", "metadata": {"Software": None}}
    return write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
