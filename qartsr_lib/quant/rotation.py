"""Rotation of channels by a randomized Hadamard matrix, which spreads outliers over all of them (QuaRot).

Arxiv 2404.00456. With an orthogonal H, W x = (W H^T) (H x); both factors have fewer outliers than W and x.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F


def random_signs(like: torch.Tensor) -> torch.Tensor:
    """(n,) of -1 and 1 for `like` (c_out, n, ...): the same numbers for a seed on every device."""
    return (2.0 * torch.randint(2, (like.shape[1],)) - 1.0).to(like)


def block_size(channels: int) -> int:
    """The largest power of two that divides `channels`: of such sizes there is a Hadamard matrix without a table."""
    return channels & -channels


def rotated(x: torch.Tensor, signs: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """H x along the channels of rows (..., c), axis -1, or of an image (N, c, H, W) or weight, axis -3; like x.

    H is block-diagonal: `size` channels at a time are multiplied by their `signs`, then by the Hadamard matrix of that
    size over the root of it.
    """
    blocks = torch.eye(len(signs) // size, dtype=x.dtype, device=x.device)
    matrix = torch.kron(blocks, _hadamard(size).to(x)) * signs
    # No plain matrix product: its bits depend on where the tensors lie in memory.
    return F.linear(x, matrix) if axis == -1 else F.conv2d(x, matrix[:, :, None, None])


@lru_cache(maxsize=16)
def _hadamard(size: int) -> torch.Tensor:
    from scipy.linalg import hadamard  # most models are not rotated

    return torch.from_numpy(hadamard(size)).float() / size**0.5
