"""Pictures that compare methods: a photograph with its box, beside it the box cut from every output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qartsr_lib.images.image import to_uint8
from qartsr_lib.show.figures.grids import Box
from qartsr_lib.show.figures.style import styled

BOX_COLOUR = "#ffd92f"
GAP, LABEL, TITLE = 0.06, 0.36, 0.24  # inches: between pictures, for the text under a crop, above a photograph
FONT, CHARACTER = 7, 0.062  # points, and the width of a bold character of this size in inches


@dataclass(frozen=True)
class Panel:
    """One crop.

    Attributes:
        image: (1, 3, H, W) in [0, 1], of the photograph's size; None is shown as n/a.
        label: under the crop, at most two lines.
        bold: whether the label stands out.
    """

    image: torch.Tensor | None
    label: str
    bold: bool = False


@dataclass(frozen=True)
class Block:
    """One photograph and what was made of it.

    Attributes:
        title: above the photograph.
        original: (1, 3, H, W) in [0, 1].
        box: what the panels show of it.
        lines: of panels, from top to bottom; None leaves a place empty.
    """

    title: str
    original: torch.Tensor
    box: Box
    lines: tuple[tuple[Panel | None, ...], ...]


def photograph_blocks(blocks: Sequence[Block], crop: float = 1.3) -> Figure:
    """The paper's Figs. 1, 3 and 6: each photograph with its box, and lines of crops to the right of it.

    Args:
        blocks: at least one, from top to bottom.
        crop: side of a crop in inches; a photograph is as high as its lines of crops.

    Raises:
        ValueError: no block.
    """
    if not blocks:
        raise ValueError("no photograph to show")
    photographs = [len(block.lines) * (crop + LABEL) - LABEL for block in blocks]
    shapes = [block.original.shape for block in blocks]
    lefts = [side * shape[-1] / shape[-2] for side, shape in zip(photographs, shapes, strict=True)]
    columns = max(len(line) for block in blocks for line in block.lines)
    left = max(lefts)
    width = left + GAP + columns * (crop + GAP)
    height = sum(side + LABEL + TITLE for side in photographs)
    with styled(), plt.rc_context({"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(width, height))
        top = height
        for block, side, wide in zip(blocks, photographs, lefts, strict=True):
            top -= TITLE
            _photograph(_axes(figure, left - wide, top - side, wide, side), block)
            for row, line in enumerate(block.lines):
                for column, panel in enumerate(line):
                    x, y = left + GAP + column * (crop + GAP), top - crop - row * (crop + LABEL)
                    if panel is not None:
                        _crop(_axes(figure, x, y, crop, crop), panel, block.box)
            top -= side + LABEL
    return figure


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((x / across, y / up, width / across, height / up), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def _photograph(axes: Axes, block: Block) -> None:
    axes.imshow(to_uint8(block.original), interpolation="antialiased", aspect="auto")
    corner = (block.box.left - 0.5, block.box.top - 0.5)
    axes.add_patch(Rectangle(corner, block.box.size, block.box.size, fill=False, ec=BOX_COLOUR, lw=1.8))
    axes.set_title(block.title, fontsize=9, pad=3, loc="left")


def _crop(axes: Axes, panel: Panel, box: Box) -> None:
    longest = max(len(line) for line in panel.label.split("\n"))
    size = min(FONT, FONT * axes.bbox.width / axes.figure.dpi / (longest * CHARACTER or 1.0))
    axes.set_xlabel(panel.label, fontsize=size, labelpad=2, fontweight="bold" if panel.bold else "normal")
    if panel.image is None:
        axes.set_facecolor("#eeeeee")
        axes.text(0.5, 0.5, "n/a", ha="center", va="center", color="#666666", transform=axes.transAxes)
        return
    axes.imshow(to_uint8(box.cut(panel.image)), interpolation="nearest", aspect="auto")
