"""GroupNorm, with or without SiLU after it, position by position: PyTorch's wants channels first and copies for it.

Three kernels: mean and squared deviations of every channel over a tile of positions; from them, group by
group, a factor and a shift for every channel; and those applied. Sums are float32, each around its own
mean, and always added in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_C = 64
#: From so many positions on a tile holds many of them; fewer would leave most of a GPU idle.
MANY = 8192


@triton.jit(do_not_specialize=["positions", "tiles"])
def norm_moments(
    x,
    means,
    squares,
    positions,
    channels,
    tiles,
    stride_image,
    stride_position,
    stride_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, tile = tl.program_id(2).to(tl.int64), tl.program_id(0)
    position = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (position < positions)[:, None] & (channel < channels)[None, :]
    where = image * stride_image + position[:, None] * stride_position + channel[None, :] * stride_channel
    value = tl.load(x + where, mask=exists, other=0.0).to(tl.float32)
    count = tl.minimum(positions - tile * BLOCK_P, BLOCK_P).to(tl.float32)
    mean = tl.sum(value, axis=0) / count
    apart = tl.where(exists, value - mean[None, :], 0.0)
    at = (image * channels + channel) * tiles + tile
    tl.store(means + at, mean, mask=channel < channels)
    tl.store(squares + at, tl.sum(apart * apart, axis=0), mask=channel < channels)


@triton.jit(do_not_specialize=["positions", "channels", "tiles", "eps"])
def norm_factors(
    means,
    squares,
    weight,
    bias,
    factor,
    shift,
    positions,
    channels,
    tiles,
    of_group,
    eps,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    start = (image * channels + group * of_group) * tiles  # a group's numbers lie side by side
    length = of_group * tiles
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, length, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        count = tl.minimum(positions - at % tiles * BLOCK_P, BLOCK_P).to(tl.float32)
        total += tl.load(means + start + at, mask=at < length, other=0.0) * count
    count_all = (positions * of_group).to(tl.float32)
    mean = tl.sum(total, axis=0) / count_all
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, length, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        count = tl.minimum(positions - at % tiles * BLOCK_P, BLOCK_P).to(tl.float32)
        apart = tl.load(means + start + at, mask=at < length, other=0.0) - mean
        within = tl.load(squares + start + at, mask=at < length, other=0.0)
        total += tl.where(at < length, within + apart * apart * count, 0.0)
    variance = tl.sum(total, axis=0) / count_all
    scale = 1.0 / tl.sqrt(variance + eps)
    g = tl.arange(0, BLOCK_G)
    channel = group * of_group + g
    a = tl.load(weight + channel, mask=g < of_group, other=0.0).to(tl.float32) * scale
    b = tl.load(bias + channel, mask=g < of_group, other=0.0).to(tl.float32) - mean * a
    tl.store(factor + image * channels + channel, a, mask=g < of_group)
    tl.store(shift + image * channels + channel, b, mask=g < of_group)


@triton.jit(do_not_specialize=["positions"])
def norm_apply(
    x,
    factor,
    shift,
    out,
    positions,
    channels,
    stride_image,
    stride_position,
    stride_channel,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (position < positions)[:, None] & (channel < channels)[None, :]
    where = image * stride_image + position[:, None] * stride_position + channel[None, :] * stride_channel
    value = tl.load(x + where, mask=exists, other=0.0).to(tl.float32)
    a = tl.load(factor + image * channels + channel, mask=channel < channels, other=0.0)
    b = tl.load(shift + image * channels + channel, mask=channel < channels, other=0.0)
    y = value * a[None, :] + b[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    at = (image * positions + position[:, None]) * channels + channel[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=exists)


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float, silu: bool
) -> torch.Tensor:
    """GroupNorm over positions and the channels of a group, then SiLU if `silu`.

    Args:
        x: (N, P, C) of any strides, float32 or bfloat16, fewer than 2^31 elements.
        groups: divides C.
        weight, bias: (C,).

    Returns:
        (N, P, C), contiguous, of x's type.
    """
    images, positions, channels = x.shape
    block_p = 128 if positions >= MANY else 32
    tiles, columns = triton.cdiv(positions, block_p), triton.cdiv(channels, BLOCK_C)
    moments = torch.empty(2, images, channels, tiles, dtype=torch.float32, device=x.device)
    affine = torch.empty(2, images, channels, dtype=torch.float32, device=x.device)
    out = torch.empty(images, positions, channels, dtype=x.dtype, device=x.device)
    blocks = {"BLOCK_P": block_p, "BLOCK_C": BLOCK_C}
    norm_moments[(tiles, columns, images)](x, moments[0], moments[1], positions, channels, tiles, *x.stride(), **blocks)
    of_group = channels // groups
    norm_factors[(groups, images)](
        *(moments[0], moments[1], weight, bias, affine[0], affine[1]),
        *(positions, channels, tiles, of_group, eps),
        BLOCK_P=block_p,
        BLOCK_G=triton.next_power_of_2(of_group),
        BLOCK=min(4096, triton.next_power_of_2(of_group * tiles)),
        num_warps=8 if of_group * tiles > 1024 else 4,
    )
    norm_apply[(tiles, columns, images)](
        x, affine[0], affine[1], out, positions, channels, *x.stride(), SILU=silu, **blocks
    )
    return out
