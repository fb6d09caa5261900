"""QArtSR's finetuning quantizer for Linear and Conv2d (Eq. 9).

    y = L1 L2 x + Q_W(phi (R + F1 F2)) Q_A(x / phi) + Q_B(B),    R = W - L1 L2

W is frozen. L1 L2 is a side branch in 16 bits, F1 F2 is merged into the quantized weight, phi is one
positive factor per input channel. All of them, and the bounds of the quantizers, are trained.
What the paper leaves open (ranks, starts) is listed in DEVIATIONS.md.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.methods.channel_layers import ChannelScaledLayer
from qartsr_lib.methods.low_rank import (
    MERGED_DIVISOR,
    SIDE_DIVISOR,
    SVDS,
    SideBranchConv2d,
    SideBranchLinear,
    kaiming_start,
    published_rank,
    scaled_rank,
)
from qartsr_lib.quant.granularity import broadcast_along
from qartsr_lib.quant.layers import LAYER_KINDS, InferenceParts, LayerConfig
from qartsr_lib.quant.learned import LearnedQuantizer


class FinetuneLayer(ChannelScaledLayer):
    """Common part of FinetuneLinear and FinetuneConv2d.

    Attributes:
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k), from the truncated SVD of W (as SVDQuant starts).
        merged_out, merged_in: F1 (c_out, r'), zero, and F2 (r', c_in k k), Kaiming uniform (as LoRA starts).

    Args of the layer kind:
        side_rank, merged_rank: r and r'; None for the rule of `scaled_rank`.
        svd: what the side branch starts with, a name in SVDS.
    """

    quantizer_type = LearnedQuantizer

    def _add_quantizers(
        self,
        config: LayerConfig,
        name: str,
        *,
        side_rank: int | None = None,
        merged_rank: int | None = None,
        svd: str = "exact",
    ) -> None:
        super()._add_quantizers(config, name)
        weight = self.weight.detach()
        side = scaled_rank(weight, SIDE_DIVISOR) if side_rank is None else published_rank(weight, side_rank)
        merged = scaled_rank(weight, MERGED_DIVISOR) if merged_rank is None else published_rank(weight, merged_rank)
        side_out, side_in = SVDS[svd](weight, side)
        self.side_out, self.side_in = nn.Parameter(side_out.clone()), nn.Parameter(side_in.clone())
        self.merged_out = nn.Parameter(weight.new_zeros(len(weight), merged))
        self.merged_in = nn.Parameter(kaiming_start(merged, weight[0].numel(), weight))

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What finetuning updates: L, F, phi and the bounds of all quantizers; never W or B."""
        return {
            "side": [self.side_out, self.side_in],
            "merged": [self.merged_out, self.merged_in],
            "phi": [self.log_phi],
            "bounds": self.quantizer_parameters(),
        }

    def folded_weight(self) -> torch.Tensor:
        """phi (R + F1 F2), like W: what Q_W sees."""
        branches = (self.merged_out, self.merged_in, self.side_out, self.side_in)
        return _FoldedWeight.apply(self.weight, *branches, broadcast_along(self.log_phi, 1, self.weight.ndim))

    def inference_parts(self) -> InferenceParts:
        return replace(super().inference_parts(), side_out=self.side_out, side_in=self.side_in)

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x."""
        return self.side_branch(x)

    def trained_side(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.side_out, self.side_in


class FinetuneLinear(FinetuneLayer, SideBranchLinear):
    """Eq. 9 for nn.Linear; (..., c_in) -> (..., c_out)."""


class FinetuneConv2d(FinetuneLayer, SideBranchConv2d):
    """Eq. 9 for nn.Conv2d."""


class _FoldedWeight(torch.autograd.Function):
    """phi (W + F1 F2 - L1 L2) as one node, W being constant.

    Weights are tiny, and a network has hundreds of them: differentiated operation by operation, the
    overhead of these operations is a good part of a step on small images.
    """

    @staticmethod
    def forward(ctx, weight, merged_out, merged_in, side_out, side_in, log_phi):
        phi = log_phi.exp()
        residual = weight + (merged_out @ merged_in - side_out @ side_in).view_as(weight)
        ctx.save_for_backward(residual, merged_out, merged_in, side_out, side_in, phi)
        return phi * residual

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        residual, merged_out, merged_in, side_out, side_in, phi = ctx.saved_tensors
        scaled = gradient * phi
        change = scaled.flatten(1)
        merged = change @ merged_in.t(), merged_out.t() @ change
        side = (change @ side_in.t()).neg_(), (side_out.t() @ change).neg_()
        return None, *merged, *side, scaled.mul_(residual).sum_to_size(phi.shape)


LAYER_KINDS.register("finetune")({nn.Linear: FinetuneLinear, nn.Conv2d: FinetuneConv2d})
