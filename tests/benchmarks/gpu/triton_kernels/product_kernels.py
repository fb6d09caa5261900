"""The kernels of triton_kernels.product: a tile of integer sums, and what a layer adds to them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _finished(
    total,
    m,
    n,
    scale,
    sum_scale,
    under,
    table,
    row_class,
    column_class,
    narrow,
    side_out,
    out,
    rows,
    c_out,
    out_height,
    out_width,
    column_classes,
    rank,
    narrow_rank,
    narrow_position,
    CLASSES: tl.constexpr,
    RANKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a tile of the output, given its integer sums: all that is left of the layer is added here."""
    exists, is_output = m < rows, n < c_out
    stored = exists[:, None] & is_output[None, :]
    factor = tl.load(scale + n, mask=is_output, other=0.0)
    sum_factor = tl.load(sum_scale + n, mask=is_output, other=0.0)
    codes_under = tl.load(under + m, mask=exists, other=0).to(tl.float32)
    result = total.to(tl.float32) * factor[None, :] + codes_under[:, None] * sum_factor[None, :]
    if CLASSES:
        line = m // out_width
        kind = tl.load(row_class + line % out_height, mask=exists, other=0) * column_classes
        kind += tl.load(column_class + m % out_width, mask=exists, other=0)
        least = tl.min(tl.where(exists, kind, 2147483647), axis=0)
        most = tl.max(tl.where(exists, kind, -1), axis=0)
        for one in range(least, most + 1):  # most tiles touch no border and have one
            constant = tl.load(table + one * c_out + n, mask=is_output, other=0.0)
            result += tl.where((kind == one)[:, None], constant[None, :], 0.0)
    else:
        result += tl.load(table + n, mask=is_output, other=0.0)[None, :]
    if RANKS > 0:
        r = tl.arange(0, RANKS)
        where = m[:, None] * narrow_position + r[None, :] * narrow_rank
        left = tl.load(narrow + where, mask=exists[:, None] & (r < rank)[None, :], other=0.0).to(tl.float32)
        used = is_output[None, :] & (r < rank)[:, None]
        spread = tl.load(side_out + n[None, :] * rank + r[:, None], mask=used, other=0.0)
        result += tl.dot(left, spread, input_precision=PRECISION)
    tl.store(out + m[:, None].to(tl.int64) * c_out + n[None, :], result.to(out.dtype.element_ty), mask=stored)


UNSPECIALIZED = ("rows", "height", "width", "out_height", "out_width", "column_classes", "rank")
UNSPECIALIZED += ("narrow_rank", "narrow_position", "each", "splits")


@triton.jit(do_not_specialize=UNSPECIALIZED)
def product_kernel(
    codes,
    weight,
    partial,
    scale,
    sum_scale,
    under,
    table,
    row_class,
    column_class,
    narrow,
    side_out,
    out,
    rows,
    c_out,
    out_height,
    out_width,
    column_classes,
    rank,
    narrow_rank,
    narrow_position,
    padded,
    height,
    width,
    each,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    SPLIT: tl.constexpr,
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
    # Of the first tap; where it lies outside the image it is masked.
    first = ((image * height + top) * width + left) * padded

    steps = taps * (padded // BLOCK_K)
    begin, end = 0, steps
    if SPLIT:
        begin = tl.program_id(1) * each
        end = tl.minimum(begin + each, steps)
    weights = weight + n[None, :] * (taps * padded) + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    # One loop, so that loads run ahead; taps change fastest, because neighbouring taps read the same positions.
    for step in range(begin, end):
        tap, chunk = step % taps, step // taps * BLOCK_K
        y, x = tap // KERNEL_X * DILATION_Y, tap % KERNEL_X * DILATION_X
        inside = exists & (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width)
        where = (first + ((y * width + x) * padded + chunk))[:, None] + k[None, :]
        a = tl.load(codes + where, mask=inside[:, None], other=0)
        b = tl.load(weights + (tap * padded + chunk), mask=is_output[None, :], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)

    if SPLIT:
        at = (tl.program_id(1) * rows + m)[:, None] * c_out + n[None, :]
        tl.store(partial + at, total, mask=exists[:, None] & is_output[None, :])
    else:
        _finished(
            total,
            m,
            n,
            scale,
            sum_scale,
            under,
            table,
            row_class,
            column_class,
            narrow,
            side_out,
            out,
            rows,
            c_out,
            out_height,
            out_width,
            column_classes,
            rank,
            narrow_rank,
            narrow_position,
            CLASSES,
            RANKS,
            PRECISION,
        )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def finish_kernel(
    partial,
    scale,
    sum_scale,
    under,
    table,
    row_class,
    column_class,
    narrow,
    side_out,
    out,
    rows,
    c_out,
    out_height,
    out_width,
    column_classes,
    rank,
    narrow_rank,
    narrow_position,
    splits,
    CLASSES: tl.constexpr,
    RANKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The second half of a split product: integers are added up in any order to the same sum."""
    blocks_n = tl.cdiv(c_out, BLOCK_N)
    m = tl.program_id(0) // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    stored = (m < rows)[:, None] & (n < c_out)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for split in range(0, splits):
        total += tl.load(partial + (split * rows + m)[:, None] * c_out + n[None, :], mask=stored, other=0)
    _finished(
        total,
        m,
        n,
        scale,
        sum_scale,
        under,
        table,
        row_class,
        column_class,
        narrow,
        side_out,
        out,
        rows,
        c_out,
        out_height,
        out_width,
        column_classes,
        rank,
        narrow_rank,
        narrow_position,
        CLASSES,
        RANKS,
        PRECISION,
    )
