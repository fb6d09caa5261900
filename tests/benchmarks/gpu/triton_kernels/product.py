"""Convolution or linear layer in integers: an implicit matrix product over taps and channels, then the float rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from qartsr_lib.deploy.geometry import Geometry
from tests.benchmarks.gpu.triton_kernels.product_kernels import finish_kernel, product_kernel
from tests.benchmarks.gpu.triton_kernels.tiles import Tiles, candidates, fastest, processors_of
from tests.benchmarks.gpu.triton_kernels.windows import under_windows

POINT = Geometry((1, 1), (1, 1), (0, 0), (1, 1))
"""A linear layer, as a convolution."""
SMALLEST_RANK = 16
"""Tensor cores take no narrower products; ranks are filled up with zeros."""
FINISHED = (16, 64)
"""Positions and outputs of one program that ends a split product, which is small: many programs."""


@dataclass(frozen=True)
class Border:
    """Which constant an output position gets: table[row_class[y], column_class[x]].

    Attributes:
        table: (row classes, column classes, c_out) float32.
        row_class, column_class: int32, (H',) and (W',); with a single class of both they are not read.
    """

    table: torch.Tensor
    row_class: torch.Tensor
    column_class: torch.Tensor


def multiply(
    codes: torch.Tensor,
    sums: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    sum_scale: torch.Tensor,
    border: Border,
    products: torch.Tensor | None,
    side_out: torch.Tensor | None,
    geometry: Geometry | None,
    dtype: torch.dtype,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """scale (sum c_w c_a) + sum_scale (sum c_a) + constant + L1 L2 x, sums over the taps inside the image.

    Args:
        codes: int8 (N, H, W, padded); for a linear layer (1, 1, P, padded).
        sums: of the codes over the channels, int32 (N, H, W).
        weight: int8 (c_out, taps, padded).
        scale, sum_scale: (c_out,) float32.
        border: the constants.
        products, side_out: L2 x from geometry.side_products, bfloat16, and L1 (c_out, r), float32; or None.
        geometry: None for a linear layer.
        dtype: of the result, bfloat16 or float32; with float32 the branch, too, is summed to its precision.
        tiles: of the product, by default the fastest found.

    Returns:
        (N, H', W', c_out).
    """
    shape = geometry or POINT
    images, height, width, padded = codes.shape
    out_height, out_width = shape.outputs(height, 0), shape.outputs(width, 1)
    rows, (c_out, taps, _) = images * out_height * out_width, weight.shape
    out = torch.empty(images, out_height, out_width, c_out, dtype=dtype, device=codes.device)
    rank = 0 if products is None else side_out.shape[1]
    under, narrow, strides = sums, products, (1, rank)
    if geometry is not None:
        strides = (rows, 1)
        if shape != POINT:
            under, narrow = under_windows(sums, products, shape)
    if not rank:
        narrow, side_out = scale, scale  # not read
    pointers = (scale, sum_scale, under, border.table, border.row_class, border.column_class, narrow, side_out, out)
    numbers = (rows, c_out, out_height, out_width, border.table.shape[1], rank, *strides)
    options = {
        "CLASSES": border.table.numel() > c_out,
        "RANKS": max(SMALLEST_RANK, triton.next_power_of_2(rank)) if rank else 0,
        "PRECISION": "tf32" if dtype == torch.bfloat16 else "tf32x3",
    }
    of_shape = (*shape.kernel, *shape.stride, *shape.padding, *shape.dilation)

    def launch(tiles: Tiles) -> None:
        blocks = triton.cdiv(rows, tiles.m) * triton.cdiv(c_out, tiles.n)
        each = triton.cdiv(taps * padded // tiles.k, tiles.splits)
        split, partial = tiles.splits > 1, under
        if split:
            partial = torch.empty(tiles.splits, rows, c_out, dtype=torch.int32, device=codes.device)
        sizes = {"BLOCK_K": tiles.k, "num_warps": tiles.warps, "num_stages": tiles.stages}
        product_kernel[(blocks, tiles.splits)](
            *(codes, weight, partial, *pointers, *numbers, padded, height, width, each, *of_shape),
            **{"SPLIT": split, "BLOCK_M": tiles.m, "BLOCK_N": tiles.n} | sizes | options,
        )
        if split:
            blocks = triton.cdiv(rows, FINISHED[0]) * triton.cdiv(c_out, FINISHED[1])
            sizes = {"BLOCK_M": FINISHED[0], "BLOCK_N": FINISHED[1]}
            finish_kernel[(blocks,)](partial, *pointers, *numbers, tiles.splits, **sizes, **options)

    if tiles is None:
        key = (codes.device, rows, height, width, c_out, padded, shape)
        tried = candidates(rows, c_out, padded, taps, processors_of(codes.device))
        tiles = fastest(key, tried, launch)
    launch(tiles)
    return out
