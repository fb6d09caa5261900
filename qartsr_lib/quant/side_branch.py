"""L1 L2 x of 16-bit low-rank side branches, in training and in the exported form alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def spread(narrow: torch.Tensor, side_out: torch.Tensor) -> torch.Tensor:
    """L1 at every position: (N, r, H, W) -> (N, c_out, H, W), `side_out` being L1 (c_out, r).

    A single channel is multiplied, as torch has no fast 1 x 1 convolution for it. (A matrix product would
    be fast for all ranks, but its bits depend on where the tensors happen to lie in memory.)
    """
    weight = side_out[:, :, None, None]
    return narrow * weight[:, 0] if side_out.shape[1] == 1 else F.conv2d(narrow, weight)
