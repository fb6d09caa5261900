"""16-bit low-rank branches beside a quantized Linear or Conv2d, and the one rule for their ranks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.quant.layers import QuantConv2d, QuantLinear, spread

SIDE_DIVISOR = 80
"""Of 16-bit side branches, which cost storage."""
MERGED_DIVISOR = 10
"""Of updates that are merged into the weight and cost nothing."""


def scaled_rank(weight: torch.Tensor, divisor: int) -> int:
    """max(1, round(min(c_in k^2, c_out) / divisor)): the papers' ranks, made for 320 to 1,280 channels, to scale."""
    return max(1, round(min(weight[0].numel(), len(weight)) / divisor))


def published_rank(weight: torch.Tensor, rank: int) -> int:
    """`rank` as a paper has it, at most the full rank of `weight`."""
    return min(rank, weight[0].numel(), len(weight))


def truncated_svd(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(U S, V^T) of `weight` (c_out, ...) as a matrix: (c_out, rank) and (rank, c_in k k), as SVDQuant starts."""
    left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    # LAPACK's factors lie column by column; the bits of a product depend on that, and a file does not keep it.
    return (left[:, :rank] * singular[:rank]).contiguous(), right[:rank].contiguous()


def quick_svd(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `truncated_svd`, nearly, by random projection: of matrices whose exact one takes minutes."""
    left, singular, right = torch.svd_lowrank(weight.flatten(1), min(rank + 4, *weight.flatten(1).shape))
    return (left[:, :rank] * singular[:rank]).contiguous(), right[:, :rank].t().contiguous()


SVDS = {"exact": truncated_svd, "quick": quick_svd}


def kaiming_start(rank: int, fan_in: int, like: torch.Tensor) -> torch.Tensor:
    """(rank, fan_in) as LoRA's A starts: Kaiming uniform, the same numbers for a seed on every device of `like`."""
    drawn = torch.empty(rank, fan_in)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    return drawn.to(like)


class SideBranchLinear(QuantLinear):
    """nn.Linear's part of a layer with attributes side_out (c_out, r) and side_in (r, c_in)."""

    def side_branch(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x."""
        return F.linear(F.linear(x, self.side_in), self.side_out)


class SideBranchConv2d(QuantConv2d):
    """nn.Conv2d's part: L2 is a k x k convolution to r channels, L1 a matrix over them at every position."""

    def side_branch(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x."""
        narrow = self._conv_forward(x, self.side_in.view(-1, *self.weight.shape[1:]), None)
        return spread(narrow, self.side_out)
