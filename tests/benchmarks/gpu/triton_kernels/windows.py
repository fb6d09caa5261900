"""Sums under a convolution's kernel, of the codes' sums and of L2 x: once for each position, not for each output."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from qartsr_lib.deploy.geometry import Geometry


@triton.jit(
    do_not_specialize=["rows", "height", "width", "out_height", "out_width", "rank", "positions"],
)
def window_sums(
    sums,
    planes,
    under,
    narrow,
    rows,
    height,
    width,
    out_height,
    out_width,
    rank,
    positions,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    plane = tl.program_id(1)  # the first is that of the codes' sums, the others are the branch's ranks
    exists = m < rows
    line = m // out_width
    top = line % out_height * STRIDE_Y - PADDING_Y
    left = m % out_width * STRIDE_X - PADDING_X
    first = (line // out_height * height + top) * width + left
    if plane == 0:
        total = tl.zeros((BLOCK,), tl.int32)
        for tap in tl.static_range(KERNEL_Y * KERNEL_X):
            y, x = tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X
            inside = exists & (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width)
            total += tl.load(sums + first + y * width + x, mask=inside, other=0)
        tl.store(under + m, total, mask=exists)
    else:
        number = tl.zeros((BLOCK,), tl.float32)
        for tap in tl.static_range(KERNEL_Y * KERNEL_X):
            y, x = tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X
            inside = exists & (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width)
            of_tap = planes + (tap * rank + plane - 1).to(tl.int64) * positions + first
            number += tl.load(of_tap + y * width + x, mask=inside, other=0.0).to(tl.float32)
        tl.store(narrow + (plane - 1).to(tl.int64) * rows + m, number, mask=exists)


def under_windows(
    sums: torch.Tensor, products: torch.Tensor | None, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums over the taps inside the image.

    Args:
        sums: int32 (N, H, W).
        products: bfloat16 (taps, r, N, H, W), each tap's own, or None.
        geometry: of the convolution.

    Returns:
        int32 (N, H', W') and float32 (r, N, H', W'), or None.
    """
    images, height, width = sums.shape
    out_height, out_width = geometry.outputs(height, 0), geometry.outputs(width, 1)
    rows, rank = images * out_height * out_width, 0 if products is None else products.shape[1]
    under = torch.empty(images, out_height, out_width, dtype=torch.int32, device=sums.device)
    narrow = torch.empty(rank, *under.shape, dtype=torch.float32, device=sums.device) if rank else None
    block = 256
    window_sums[(triton.cdiv(rows, block), 1 + rank)](
        sums,
        sums if products is None else products,
        under,
        under if narrow is None else narrow,
        rows,
        height,
        width,
        out_height,
        out_width,
        rank,
        images * height * width,
        *geometry.kernel,
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        BLOCK=block,
    )
    return under, narrow
