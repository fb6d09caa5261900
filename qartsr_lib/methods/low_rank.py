"""Low-rank branches of quantized layers: the one rule for their ranks, their starts, and what they add."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.quant.layers import QuantLayer, spread

SIDE_DIVISOR = 80  # of 16-bit side branches, which cost storage
MERGED_DIVISOR = 10  # of updates that are merged into the weight and cost nothing


def scaled_rank(weight: torch.Tensor, divisor: int) -> int:
    """max(1, round(min(c_in k^2, c_out) / divisor)): the papers' ranks, made for 320 to 1,280 channels, to scale."""
    return max(1, round(min(weight[0].numel(), len(weight)) / divisor))


def truncated_svd(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(U S, V^T) of `weight` (c_out, ...) as a matrix: (c_out, rank) and (rank, c_in k k), as SVDQuant starts."""
    left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    # LAPACK's factors lie column by column; the bits of a product depend on that, and a file does not keep it.
    return (left[:, :rank] * singular[:rank]).contiguous(), right[:rank].contiguous()


def kaiming_start(rank: int, fan_in: int, like: torch.Tensor) -> torch.Tensor:
    """(rank, fan_in) as LoRA's A starts: Kaiming uniform, the same numbers for a seed on every device of `like`."""
    drawn = torch.empty(rank, fan_in)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    return drawn.to(like)


def side_branch(layer: QuantLayer, x: torch.Tensor) -> torch.Tensor:
    """L1 L2 x of a layer with side_out, L1 (c_out, r), and side_in, L2 (r, c_in k k), a convolution as it is one."""
    narrow = layer._operate(x, layer.side_in.view(-1, *layer.weight.shape[1:]), None)
    return spread(narrow, layer.side_out) if isinstance(layer, nn.Conv2d) else F.linear(narrow, layer.side_out)
