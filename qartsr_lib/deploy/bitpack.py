"""Codes of 2 to 8 bits as a dense stream of bytes, least significant bit first."""

from __future__ import annotations

import numpy as np
import torch


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` take, the last one filled up with zeros."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes of any shape, uint8 below 2^bits -> uint8 (packed_size,).

    Raises:
        ValueError: a code does not fit.
    """
    flat = codes.reshape(-1).numpy()
    if flat.size and int(flat.max()) >= 2**bits:
        raise ValueError(f"code {int(flat.max())} does not fit in {bits} bits")
    if bits == 8:
        return torch.from_numpy(flat.copy())
    each = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.reshape(-1), bitorder="little"))


def unpack(stream: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of `pack`: uint8 (packed_size,) -> codes of `shape`, uint8."""
    count = int(np.prod(shape))
    if bits == 8:
        return stream[:count].clone().reshape(shape)
    each = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little").reshape(shape))
