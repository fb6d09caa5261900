"""Run an image-to-image function over overlapping tiles and blend what comes out, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import torch

from qartsr_lib.base.errors import QartsrError


class Upscaler(Protocol):
    """A model that makes images `factor` times as large."""

    factor: int

    def upscale(self, lq: torch.Tensor) -> torch.Tensor: ...


TILE = 256
"""Side of an image's tiles in low-quality pixels: 1024 x 1024 pixels of output, about 1 GB."""
WHOLE = 512
"""Images of up to WHOLE x WHOLE low-quality pixels (the benchmarks' are) stay whole unless tiles are wished: 3 GB."""
SMALLEST_TILE = 32
#: Variance of the blending Gaussian in units of the squared tile side (OSEDiff's released script).
VARIANCE = 0.01


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles along an axis; the last tile ends at the border.

    Args:
        size: length of the axis.
        tile: length of a tile; an axis that is no longer has one tile.
        overlap: of neighbours, smaller than `tile`.
    """
    if tile >= size:
        return [0]
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and smaller than the tile, {tile}")
    stride = tile - overlap
    count = -(-(size - tile) // stride) + 1
    return [min(index * stride, size - tile) for index in range(count)]


def windows(size: int, tile: int, overlap: int) -> list[tuple[int, torch.Tensor]]:
    """(start, weights) of every tile along an axis; the weights at each position add up to 1.

    Gaussians with the standard deviation of a tenth of the tile, divided by their sum. Over two
    axes the products of such weights add up to 1 as well.

    Returns:
        Starts as `starts` gives them, weights (min(tile, size),) float64.
    """
    side = min(tile, size)
    position = torch.arange(side, dtype=torch.float64)
    bell = torch.exp(-(((position - (side - 1) / 2) / side) ** 2) / (2 * VARIANCE))
    first = starts(size, tile, overlap)
    total = torch.zeros(size, dtype=torch.float64)
    for start in first:
        total[start : start + side] += bell
    return [(start, bell / total[start : start + side]) for start in first]


def upscale_in_tiles(model: Upscaler, lq: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """`model.upscale`, tile by tile where a side is longer than `tile`; overlaps of an eighth are blended.

    Every tile is normalized by its own statistics (GroupNorm), a whole image by its own.

    Args:
        lq: (1, 3, h, w) in [0, 1].
        tile: side in low-quality pixels, at least 32.

    Returns:
        (1, 3, 4h, 4w) in [0, 1].

    Raises:
        QartsrError: a tile smaller than 32.
    """
    check_tile(tile)
    return blended(model.upscale, lq, tile, tile // 8, Fraction(model.factor)).clamp(0, 1)


def default_tile(height: int, width: int) -> int:
    """Side of an image's tiles where nobody chose one: TILE for images larger than WHOLE x WHOLE, others stay whole."""
    return TILE if height * width > WHOLE * WHOLE else max(height, width, SMALLEST_TILE)


def check_tile(tile: int | None) -> None:
    """Refuse tiles of images that are too small, with a QartsrError; None is no choice, and good."""
    if tile is not None and tile < SMALLEST_TILE:
        raise QartsrError(f"--tile {tile}: choose at least {SMALLEST_TILE} low-quality pixels, such as {TILE}")


def blended(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tile: int,
    overlap: int,
    scale: Fraction = Fraction(1),
) -> torch.Tensor:
    """`function(x)`, computed tile by tile.

    Args:
        function: (N, C, h, w) -> (N, C', scale h, scale w), for every tile.
        x: (N, C, H, W).
        tile, overlap: in positions of `x`; with a scale below 1 they and the sides of `x` are
            multiples of its denominator.
        scale: size of the outcome over that of the input, such as 8 for a VAE's decoder.

    Returns:
        (N, C', scale H, scale W), the dtype of what `function` returns; blended in float32 or better.
    """
    height, width = x.shape[-2:]
    rows, columns = _scaled(height, tile, overlap, scale), _scaled(width, tile, overlap, scale)
    if len(rows) == len(columns) == 1:
        return function(x)
    total = dtype = None
    for (top, bottom), row, row_weights in rows:
        for (left, right), column, column_weights in columns:
            part = function(x[..., top:bottom, left:right])
            if total is None:
                dtype, size = part.dtype, (int(height * scale), int(width * scale))
                precise = torch.promote_types(dtype, torch.float32)
                total = torch.zeros(*part.shape[:2], *size, dtype=precise, device=x.device)
            weights = (row_weights[:, None] * column_weights[None, :]).to(total)
            inside = (..., slice(row, row + part.shape[-2]), slice(column, column + part.shape[-1]))
            total[inside] += part * weights
    return total.to(dtype)


def _scaled(size: int, tile: int, overlap: int, scale: Fraction) -> list[tuple[tuple[int, int], int, torch.Tensor]]:
    """((first, end) in the input, first in the outcome, weights in the outcome) of every tile along an axis."""
    side = min(tile, size)
    inputs = starts(size, tile, overlap)
    outputs = windows(*(int(length * scale) for length in (size, side, overlap)))
    if [start * scale for start in inputs] != [start for start, _ in outputs]:
        raise ValueError(f"sides {size}, {tile}, {overlap} do not fit the scale {scale}")
    return [((i, i + side), start, weights) for i, (start, weights) in zip(inputs, outputs, strict=True)]
