"""Grids of pictures: the staged outputs of Fig. 7, and comparisons with zoomed crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qartsr_lib.backbones.base import Stages
from qartsr_lib.images.image import to_uint8
from qartsr_lib.show.figures.style import styled
from qartsr_lib.study.experiments.theorem import rms

DARKEST = 1e-3  # of the largest error in a column: black


@dataclass(frozen=True)
class Box:
    """A zoomed region of a photograph in HR pixels; boxes are data of the notebooks."""

    top: int
    left: int
    size: int

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        return image[..., self.top : self.top + self.size, self.left : self.left + self.size]


def comparison_grid(rows: Sequence[tuple[str, torch.Tensor, Box, Mapping[str, torch.Tensor | None]]]) -> Figure:
    """One row per photograph: the original with its box, then the box cut from each image.

    Args:
        rows: (title, original, box, {label: image}), at least one; images (1, 3, H, W) in [0, 1], None
            leaves the place empty; a label may hold a newline.
    """
    columns = 1 + max(len(images) for _, _, _, images in rows)
    with styled():
        figure, axes = plt.subplots(len(rows), columns, figsize=(1.75 * columns, 2.05 * len(rows)), squeeze=False)
        for line, (title, original, box, images) in zip(axes, rows, strict=True):
            _show(line[0], to_uint8(original), title)
            line[0].add_patch(Rectangle((box.left, box.top), box.size, box.size, fill=False, ec="#ffd92f", lw=1.5))
            for axis, (label, image) in zip(line[1:], images.items(), strict=False):
                if image is None:
                    _bare(axis, label)
                else:
                    _show(axis, to_uint8(box.cut(image)), label)
            for axis in line[1 + len(images) :]:
                axis.axis("off")
    return figure


def stage_grid(cells: Sequence[tuple[int, Stages, Stages]], bits: str) -> Figure:
    """The paper's Fig. 7: staged outputs, their quantization errors and magnitudes, one row per T.

    Latents are shown by the first three principal components of that row's z_L and z_H; error maps
    are root mean squares over channels, on one logarithmic colour scale per column over a factor of
    1,000, so rows compare.

    Args:
        cells: (timestep, full precision, quantized UNet), one image each.
        bits: of the quantized UNet, for the titles.
    """
    names = (("z_l", r"$z_L$"), ("eps", r"$\epsilon$"), ("z_h", r"$z_H$"), ("image", "image"))
    with styled():
        figure, axes = plt.subplots(len(cells), 8, figsize=(14, 2.05 * len(cells)), squeeze=False)
        limits = {name: max(float(_error_map(f, q, name).max()) for _, f, q in cells) for name, _ in names}
        for line, (timestep, full, quantized) in zip(axes, cells, strict=True):
            line[0].set_ylabel(f"T = {timestep}", fontsize=11)
            basis = _principal_components(full.z_h)
            for column, (name, symbol) in enumerate(names):
                value = getattr(quantized, name)
                _show_stage(line[2 * column], value, basis, f"{symbol}, {bits}\nRMS {rms(value):.3g}")
                error = rms(value - getattr(full, name))
                map_axis = line[2 * column + 1]
                top = limits[name] or 1.0
                shown = _error_map(full, quantized, name).clip(top * DARKEST, top)
                map_axis.imshow(shown, cmap="inferno", norm=LogNorm(top * DARKEST, top))
                _bare(map_axis, f"error of {symbol}\nRMS {error:.3g}")
    return figure


def _principal_components(latent: torch.Tensor) -> torch.Tensor:
    """(channels, 3): directions of largest variance of a latent (1, channels, h, w)."""
    points = latent[0].flatten(1).double()
    covariance = torch.cov(points)
    return torch.linalg.eigh(covariance).eigenvectors[:, -3:].flip(1)


def _show_stage(axis, value: torch.Tensor, basis: torch.Tensor, title: str) -> None:
    if value.shape[1] == 3:
        _show(axis, to_uint8(value), title)
        return
    projected = torch.einsum("chw,ck->hwk", value[0].double(), basis)
    low, high = (torch.quantile(projected.flatten(0, 1), q, dim=0) for q in (0.01, 0.99))
    shown = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    _show(axis, (shown.numpy() * 255).astype(np.uint8), title)


def _error_map(full: Stages, quantized: Stages, name: str) -> np.ndarray:
    difference = getattr(quantized, name) - getattr(full, name)
    return difference[0].double().pow(2).mean(dim=0).sqrt().numpy()


def _show(axis, array: np.ndarray, title: str) -> None:
    axis.imshow(array, interpolation="nearest")
    _bare(axis, title)


def _bare(axis, title: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
