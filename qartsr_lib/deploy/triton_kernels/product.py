"""Convolution or linear layer in integers: an implicit matrix product over taps and channels, then the float rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from qartsr_lib.deploy.geometry import Geometry

POINT = Geometry((1, 1), (1, 1), (0, 0), (1, 1))
"""A linear layer, as a convolution."""
SMALLEST_RANK = 16
"""Tensor cores take no narrower products; ranks are filled up with zeros."""


@triton.jit(
    do_not_specialize=[
        "rows",
        "height",
        "width",
        "out_height",
        "out_width",
        "column_classes",
        "rank",
        "side_tap",
        "side_rank",
        "side_position",
    ]
)
def _product(
    codes,
    weight,
    scale,
    sum_scale,
    sums,
    table,
    row_class,
    column_class,
    side,
    side_out,
    out,
    rows,
    c_out,
    padded,
    height,
    width,
    out_height,
    out_width,
    column_classes,
    rank,
    side_tap,
    side_rank,
    side_position,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    CLASSES: tl.constexpr,
    RANKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    taps: tl.constexpr = KERNEL_Y * KERNEL_X
    blocks_n = tl.cdiv(c_out, BLOCK_N)
    m = tl.program_id(0) // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    exists, is_output = m < rows, n < c_out
    column, line = m % out_width, m // out_width
    row, image = line % out_height, line // out_height
    top, left = row * STRIDE_Y - PADDING_Y, column * STRIDE_X - PADDING_X
    first = (image * height + top) * width + left  # position of the first tap; where it lies outside it is masked

    chunks = padded // BLOCK_K
    weights = weight + n[None, :] * (taps * padded) + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(0, taps * chunks):  # one loop, so that loads run ahead across taps
        tap = step // chunks
        y, x = tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X
        inside = exists & (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width)
        where = (first + y * width + x)[:, None] * padded + (step % chunks * BLOCK_K + k)[None, :]
        a = tl.load(codes + where, mask=inside[:, None], other=0)
        b = tl.load(weights + step * BLOCK_K, mask=is_output[None, :], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)

    under = tl.zeros((BLOCK_M,), tl.int32)
    r = tl.arange(0, RANKS if RANKS > 0 else 1)
    narrow = tl.zeros((RANKS if RANKS > 0 else 1, BLOCK_M), tl.float32)
    for tap in tl.static_range(taps):
        down, right = tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X
        inside = exists & (top + down >= 0) & (top + down < height) & (left + right >= 0) & (left + right < width)
        position = first + down * width + right
        under += tl.load(sums + position, mask=inside, other=0)
        if RANKS > 0:
            planes = side + tap * side_tap + r[:, None] * side_rank + position[None, :] * side_position
            narrow += tl.load(planes, mask=inside[None, :] & (r < rank)[:, None], other=0.0).to(tl.float32)
    factor = tl.load(scale + n, mask=is_output, other=0.0)
    sum_factor = tl.load(sum_scale + n, mask=is_output, other=0.0)
    result = total.to(tl.float32) * factor[None, :] + under.to(tl.float32)[:, None] * sum_factor[None, :]
    stored = exists[:, None] & is_output[None, :]
    if CLASSES:
        kind = tl.load(row_class + row, mask=exists, other=0) * column_classes
        kind += tl.load(column_class + column, mask=exists, other=0)
        result += tl.load(table + kind[:, None] * c_out + n[None, :], mask=stored, other=0.0)
    else:
        result += tl.load(table + n, mask=is_output, other=0.0)[None, :]
    if RANKS > 0:
        used = is_output[None, :] & (r < rank)[:, None]
        spread = tl.load(side_out + n[None, :] * rank + r[:, None], mask=used, other=0.0)
        result += tl.dot(tl.trans(narrow), spread, input_precision=PRECISION)
    tl.store(out + m[:, None].to(tl.int64) * c_out + n[None, :], result.to(out.dtype.element_ty), mask=stored)


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program's part of the product: m positions, n outputs, k channels at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int = 3


#: Largest first: (positions, outputs, warps).
SHAPES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4))


@lru_cache(maxsize=1024)
def tiles_for(rows: int, c_out: int, padded: int, processors: int) -> Tiles:
    """The largest tiles that still give every processor one, and are not mostly beyond the last output."""
    k = next(size for size in (128, 64, 32) if padded % size == 0)
    fitting = [shape for shape in SHAPES if shape[1] < 2 * c_out] or [SHAPES[-1]]
    enough = [shape for shape in fitting if -(-rows // shape[0]) * -(-c_out // shape[1]) >= processors]
    m, n, warps = (enough or fitting[-1:])[0]
    return Tiles(m, n, k, warps)


@lru_cache(maxsize=8)
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 elsewhere (Triton's interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


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

    Returns:
        (N, H', W', c_out).
    """
    shape = geometry or POINT
    images, height, width, padded = codes.shape
    out_height, out_width = shape.outputs(height, 0), shape.outputs(width, 1)
    rows, c_out = images * out_height * out_width, len(weight)
    out = torch.empty(images, out_height, out_width, c_out, dtype=dtype, device=codes.device)
    rank, strides = 0, (0, 0, 0)
    if products is not None:
        rank, positions = side_out.shape[1], images * height * width
        strides = (0, 1, rank) if geometry is None else (rank * positions, positions, 1)
    tiles = tiles_for(rows, c_out, padded, processors_of(codes.device))
    _product[(triton.cdiv(rows, tiles.m) * triton.cdiv(c_out, tiles.n),)](
        codes,
        weight,
        scale,
        sum_scale,
        sums,
        border.table,
        border.row_class,
        border.column_class,
        codes if products is None else products,
        scale if side_out is None else side_out,
        out,
        rows,
        c_out,
        padded,
        height,
        width,
        out_height,
        out_width,
        border.table.shape[1],
        rank,
        *strides,
        *shape.kernel,
        *shape.stride,
        *shape.padding,
        *shape.dilation,
        CLASSES=border.table.numel() > c_out,
        RANKS=max(SMALLEST_RANK, triton.next_power_of_2(rank)) if rank else 0,
        PRECISION="tf32" if dtype == torch.bfloat16 else "tf32x3",
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out
