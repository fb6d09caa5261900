"""Floating-point input -> signed 8-bit codes, position by position, with their sums: one pass over the input."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NO_HALF, HALF_INPUT, HALF_SCALED = 0, 1, 2
#: From so many positions on a block holds many of them; fewer would leave most of a GPU idle.
MANY = 8192


@triton.jit
def _divided(a, b, inverse):
    """a / b, correctly rounded, from 1 / b correctly rounded: less than half the work of a division."""
    q = a * inverse
    q = tl.fma(tl.fma(-q, b, a), inverse, q)
    return tl.fma(tl.fma(-q, b, a), inverse, q)


@triton.jit(do_not_specialize=["largest", "lowest"])
def _encode(
    x,
    phi,
    offset,
    zero_point,
    scale,
    codes,
    sums,
    half,
    positions,
    channels,
    padded,
    stride_image,
    stride_position,
    stride_channel,
    largest,
    lowest,
    PHI: tl.constexpr,
    OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = position < positions
    row = image * positions + position
    z, s = tl.load(zero_point), tl.load(scale)
    inverse = tl.div_rn(1.0, s)
    total = tl.zeros((BLOCK_P,), tl.int32)
    for start in range(0, padded, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        used = exists[:, None] & (channel < channels)[None, :]
        where = image * stride_image + position[:, None] * stride_position + channel[None, :] * stride_channel
        value = tl.load(x + where, mask=used, other=0.0).to(tl.float32)
        scaled = value
        if OFFSET:
            scaled = scaled - tl.load(offset + channel, mask=channel < channels, other=0.0)[None, :]
        if PHI:  # correctly rounded division: codes are those of the simulation
            divisor = tl.load(phi + channel, mask=channel < channels, other=1.0)
            scaled = _divided(scaled, divisor[None, :], tl.div_rn(1.0, divisor)[None, :])
        steps = _divided(scaled - z, s, inverse)
        steps = tl.minimum(tl.maximum(steps, 0.0), largest.to(tl.float32))
        # Adding 1.5 * 2^23 leaves no bits for a fraction: rounding to nearest, ties to even.
        code = ((steps + 12582912.0) - 12582912.0).to(tl.int32) + lowest
        code = tl.where(used, code, 0)
        total += tl.sum(code, axis=1)
        kept = exists[:, None] & (channel < padded)[None, :]
        tl.store(codes + row[:, None] * padded + channel[None, :], code.to(tl.int8), mask=kept)
        if HALF == 1:
            tl.store(half + row[:, None] * channels + channel[None, :], value.to(tl.bfloat16), mask=used)
        if HALF == 2:
            tl.store(half + row[:, None] * channels + channel[None, :], scaled.to(tl.bfloat16), mask=used)
    tl.store(sums + row, total, mask=exists)


def encode(
    x: torch.Tensor,
    phi: torch.Tensor | None,
    offset: torch.Tensor | None,
    zero_point: torch.Tensor,
    scale: torch.Tensor,
    largest: int,
    lowest: int,
    padded: int,
    half: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Q_A of (x - offset) / phi.

    Args:
        x: (N, P, c_in) of any strides, float32 or bfloat16, fewer than 2^31 elements.
        phi, offset: (c_in,) float32 or None.
        zero_point, scale: single numbers, float32, on the device.
        largest: codes lie in 0..largest before `lowest` is added.
        lowest: code of the smallest value.
        padded: channels of the result, zeros beyond c_in; a multiple of 32.
        half: which input to return in bfloat16: NO_HALF, HALF_INPUT or HALF_SCALED (after phi).

    Returns:
        Codes, int8 (N, P, padded); their sums over the channels, int32 (N, P); and that input, (N, P, c_in).
    """
    images, positions, channels = x.shape
    codes = torch.empty(images, positions, padded, dtype=torch.int8, device=x.device)
    sums = torch.empty(images, positions, dtype=torch.int32, device=x.device)
    seen = None if half == NO_HALF else torch.empty(images, positions, channels, dtype=torch.bfloat16, device=x.device)
    block_p, block_c = (32, 64) if positions >= MANY else (4, 256)
    _encode[(triton.cdiv(positions, block_p), images)](
        x,
        x if phi is None else phi,
        x if offset is None else offset,
        zero_point,
        scale,
        codes,
        sums,
        x if seen is None else seen,
        positions,
        channels,
        padded,
        *x.stride(),
        largest,
        lowest,
        PHI=phi is not None,
        OFFSET=offset is not None,
        HALF=half,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )
    return codes, sums, seen
