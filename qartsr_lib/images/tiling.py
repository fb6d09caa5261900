"""Run an image-to-image function over overlapping tiles and blend what comes out, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from qartsr_lib.base.errors import QartsrError

TILE = 256  # side of an image's tiles in low-quality pixels: 1024 x 1024 pixels of output, about 1 GB
WHOLE = 512  # images of up to 512 x 512 (the benchmarks' are) stay whole unless tiles are wished: 3 GB
SMALLEST_TILE = 32
#: Variance of the blending Gaussian in units of the squared tile side (OSEDiff's released script).
VARIANCE = 0.01


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles, which overlap, along an axis of `size`; the last one ends at the border."""
    if tile >= size:
        return [0]
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and smaller than the tile, {tile}")
    stride = tile - overlap
    return [min(start, size - tile) for start in range(0, size - tile + stride, stride)]


def windows(size: int, tile: int, overlap: int) -> list[tuple[int, torch.Tensor]]:
    """(start, weights) of every tile along an axis; at each position the weights (products over axes too) sum to 1.

    They are Gaussians with the standard deviation of a tenth of the tile over their sum: (min(tile, size),) float64.
    """
    side = min(tile, size)
    position = torch.arange(side, dtype=torch.float64)
    bell = torch.exp(-(((position - (side - 1) / 2) / side) ** 2) / (2 * VARIANCE))
    first = starts(size, tile, overlap)
    total = torch.zeros(size, dtype=torch.float64)
    for start in first:
        total[start : start + side] += bell
    return [(start, bell / total[start : start + side]) for start in first]


def upscale_in_tiles(model, lq: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """`model.upscale`, tile by tile where a side is longer than `tile`; overlaps of an eighth are blended.

    (1, 3, h, w) -> (1, 3, 4h, 4w) in [0, 1]. GroupNorm normalizes every tile by its own statistics.
    """
    check_tile(tile)
    return blended(model.upscale, lq, tile, tile // 8, Fraction(model.factor)).clamp(0, 1)


def default_tile(height: int, width: int) -> int:
    """Side of an image's tiles where nobody chose one: TILE for images larger than WHOLE x WHOLE, others stay whole."""
    return TILE if height * width > WHOLE * WHOLE else max(height, width, SMALLEST_TILE)


def check_tile(tile: int | None) -> None:
    """A QartsrError for tiles that are too small; None is no choice, and good."""
    if tile is not None and tile < SMALLEST_TILE:
        raise QartsrError(f"--tile {tile}: choose at least {SMALLEST_TILE} low-quality pixels, such as {TILE}")


def blended(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tile: int,
    overlap: int,
    scale: Fraction = Fraction(1),
) -> torch.Tensor:
    """`function(x)`, computed tile by tile: (N, C, H, W) -> (N, C', scale H, scale W), blended in float32 or better.

    `tile` and `overlap` are positions of `x`; with a scale below 1 they and its sides divide by the denominator.
    """
    size = [int(side * scale) for side in x.shape[-2:]]
    rows, columns = (_scaled(side, tile, overlap, scale) for side in x.shape[-2:])
    if len(rows) == len(columns) == 1:
        return function(x)
    total = dtype = None
    for tall, row, row_weights in rows:
        for wide, column, column_weights in columns:
            part = function(x[..., tall, wide])
            if total is None:
                dtype = part.dtype
                precise = torch.promote_types(dtype, torch.float32)
                total = torch.zeros(*part.shape[:2], *size, dtype=precise, device=x.device)
            total[..., row, column] += part * (row_weights[:, None] * column_weights[None, :]).to(total)
    return total.to(dtype)


def _scaled(size: int, tile: int, overlap: int, scale: Fraction) -> list[tuple[slice, slice, torch.Tensor]]:
    """(place in the input, place in the outcome, weights there) of every tile along an axis."""
    side = min(tile, size)
    inputs = starts(size, tile, overlap)
    outputs = windows(*(int(length * scale) for length in (size, side, overlap)))
    if [start * scale for start in inputs] != [start for start, _ in outputs]:
        raise ValueError(f"sides {size}, {tile}, {overlap} do not fit the scale {scale}")
    return [
        (slice(first, first + side), slice(start, start + len(weights)), weights)
        for first, (start, weights) in zip(inputs, outputs, strict=True)
    ]
