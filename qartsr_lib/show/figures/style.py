"""One look for all figures, and the way they are saved."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from qartsr_lib.base import paths
from qartsr_lib.base.files import write_atomically

#: One colour per timestep label, from warm (large T) to cold (T = 1); colour-blind safe.
TIMESTEP_COLOURS = {1000: "#b2182b", 750: "#d6604d", 500: "#e08214", 250: "#80b1d3", 100: "#4393c3", 1: "#2166ac"}
DPI = 150
LIMIT = 2_000_000  # bytes of a committed picture
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
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}
#: Decorator that applies the study's matplotlib settings while a figure is drawn.
styled = mpl.rc_context(SETTINGS)


def colour(timestep: int) -> str:
    """The colour of a timestep label; grey for labels outside the study."""
    return TIMESTEP_COLOURS.get(timestep, "#555555")


def subplots(rows: int, columns: int, size: tuple[float, float], **options) -> tuple[Figure, np.ndarray]:
    """A figure of `size` in inches and its axes, (rows, columns) also where there is one."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **options)


def empty(text: str) -> Figure:
    """A small figure that says why there is nothing to show."""
    figure, ((axis,),) = subplots(1, 1, (4, 1))
    axis.text(0.5, 0.5, text, ha="center", va="center")
    axis.axis("off")
    return figure


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all axes, of what the first shows."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def save(figure: Figure, profile: str, name: str) -> Path:
    """Write figures/<profile>/<name>.png, or .webp where a PNG takes more than LIMIT; never both.

    Atomic, without a time stamp, and not at all where the file there shows the same pixels.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    path, content = paths.figures_dir(profile) / f"{name}.png", stream.getvalue()
    other = path.with_suffix(".webp")
    if len(content) > LIMIT:
        path, other, content = other, path, webp(Image.open(stream).convert("RGB"), 90)
    written = write_picture(path, content)
    other.unlink(missing_ok=True)
    return written


def webp(image: Image.Image, quality: int) -> bytes:
    """The file's content; the same for the same pixels."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=6)
    return stream.getvalue()


def write_picture(path: Path, content: bytes) -> Path:
    """Write an encoded picture atomically, unless the file there shows the same pixels."""
    if path.is_file():
        try:
            with Image.open(path) as old, Image.open(io.BytesIO(content)) as new:
                if old.size == new.size and old.convert("RGBA").tobytes() == new.convert("RGBA").tobytes():
                    return path
        except OSError:
            pass  # a damaged file is replaced
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))
