"""Pictures: crops of photographs side by side, and the staged outputs of Fig. 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qartsr_lib.backbones.base import Stages
from qartsr_lib.images.image import to_uint8
from qartsr_lib.show.figures.style import styled, subplots
from qartsr_lib.study.experiments.theorem import rms

BOX_COLOUR = "#ffd92f"
GAP, LABEL, TITLE = 0.06, 0.36, 0.24  # inches: between pictures, for the text under a crop, above a photograph
FONT, CHARACTER = 7, 0.062  # points, and the width of a bold character of this size in inches
DARKEST = 1e-3  # of the largest error in a column: black


@dataclass(frozen=True)
class Box:
    """A zoomed region of a photograph in HR pixels; boxes are data of the notebooks."""

    top: int
    left: int
    size: int

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        return image[..., self.top : self.top + self.size, self.left : self.left + self.size]

    def inside(self, height: int, width: int) -> bool:
        fits = self.top + self.size <= height and self.left + self.size <= width
        return self.size > 0 <= min(self.top, self.left) and fits


@dataclass(frozen=True)
class Panel:
    """One crop."""

    image: torch.Tensor | None  # (1, 3, H, W) in [0, 1], of the photograph's size; None is shown as n/a
    label: str  # under the crop, at most two lines
    bold: bool = False  # whether the label stands out


@dataclass(frozen=True)
class Block:
    """One photograph and what was made of it."""

    title: str  # above the photograph
    original: torch.Tensor  # (1, 3, H, W) in [0, 1]
    box: Box  # what the panels show of it
    lines: tuple[tuple[Panel | None, ...], ...]  # from top to bottom; None leaves a place empty


@styled
def photograph_blocks(blocks: Sequence[Block], crop: float = 1.3) -> Figure:
    """The paper's Figs. 1, 3 and 6: each photograph with its box, and lines of crops to the right of it.
    `crop`: side of a crop in inches; a photograph is as high as its lines. A ValueError where there is no block."""
    if not blocks:
        raise ValueError("no photograph to show")
    heights = [len(block.lines) * (crop + LABEL) - LABEL for block in blocks]
    shapes = [block.original.shape for block in blocks]
    widths = [height * shape[-1] / shape[-2] for height, shape in zip(heights, shapes, strict=True)]
    left = max(widths)
    columns = max(len(line) for block in blocks for line in block.lines)
    size = (left + GAP + columns * (crop + GAP), sum(heights) + len(blocks) * (LABEL + TITLE))
    figure = plt.figure(figsize=size, layout="none")
    top = size[1]
    for block, height, width in zip(blocks, heights, widths, strict=True):
        top -= TITLE
        _photograph(_axes(figure, left - width, top - height, width, height), block)
        for row, line in enumerate(block.lines):
            for column, panel in enumerate(line):
                x, y = left + GAP + column * (crop + GAP), top - crop - row * (crop + LABEL)
                if panel is not None:
                    _crop(_axes(figure, x, y, crop, crop), panel, block.box)
        top -= height + LABEL
    return figure


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return _bare(figure.add_axes((x / across, y / up, width / across, height / up)))


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


@styled
def stage_grid(cells: Sequence[tuple[int, Stages, Stages]], bits: str) -> Figure:
    """The paper's Fig. 7: staged outputs, their quantization errors and magnitudes, one row per T.

    Latents are shown by the first three principal components of that row's z_L and z_H; error maps are root mean
    squares over channels, on one logarithmic colour scale per column over a factor of 1,000, so rows compare.
    `cells`: (timestep, full precision, UNet quantized to `bits`), one image each.
    """
    names = (("z_l", r"$z_L$"), ("eps", r"$\epsilon$"), ("z_h", r"$z_H$"), ("image", "image"))
    figure, axes = subplots(len(cells), 8, (14, 2.05 * len(cells)))
    limits = {name: max(float(_error_map(f, q, name).max()) for _, f, q in cells) for name, _ in names}
    for line, (timestep, full, quantized) in zip(axes, cells, strict=True):
        line[0].set_ylabel(f"T = {timestep}", fontsize=11)
        basis = _principal_components(full.z_h)
        for (shown, mapped), (name, symbol) in zip(line.reshape(4, 2), names, strict=True):
            value = getattr(quantized, name)
            shown.imshow(_as_colours(value, basis), interpolation="nearest")
            _bare(shown, f"{symbol}, {bits}\nRMS {rms(value):.3g}")
            top = limits[name] or 1.0
            errors = _error_map(full, quantized, name).clip(top * DARKEST, top)
            mapped.imshow(errors, cmap="inferno", norm=LogNorm(top * DARKEST, top))
            _bare(mapped, f"error of {symbol}\nRMS {rms(value - getattr(full, name)):.3g}")
    return figure


def _principal_components(latent: torch.Tensor) -> torch.Tensor:
    """(channels, 3): directions of largest variance of a latent (1, channels, h, w)."""
    covariance = torch.cov(latent[0].flatten(1).double())
    return torch.linalg.eigh(covariance).eigenvectors[:, -3:].flip(1)


def _as_colours(value: torch.Tensor, basis: torch.Tensor) -> np.ndarray:
    if value.shape[1] == 3:
        return to_uint8(value)
    projected = torch.einsum("chw,ck->hwk", value[0].double(), basis)
    low, high = (torch.quantile(projected.flatten(0, 1), q, dim=0) for q in (0.01, 0.99))
    shown = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (shown.numpy() * 255).astype(np.uint8)


def _error_map(full: Stages, quantized: Stages, name: str) -> np.ndarray:
    difference = getattr(quantized, name) - getattr(full, name)
    return difference[0].double().pow(2).mean(dim=0).sqrt().numpy()


def _bare(axes: Axes, title: str = "") -> Axes:
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes
