"""QArtSR: reversed per-module quantization (RPQ) and end-to-end training (ET) of the layers of Eq. (9).

    y = L1 L2 x + Q_W(phi (R + F1 F2)) Q_A(x / phi) + Q_B(B),    R = W - L1 L2

W is frozen. L1 L2 is a side branch in 16 bits, F1 F2 is merged into the quantized weight, phi is one positive factor
per input channel. All of them, and the bounds of the quantizers, are trained. What the paper leaves open (ranks,
starts) is listed in DEVIATIONS.md. TRQ, the third stage, is the choice of a backbone (its timestep) and not part of it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import low_rank
from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.channel_layers import ChannelScaledLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant import few_passes
from qartsr_lib.quant.granularity import broadcast_along
from qartsr_lib.quant.layers import InferenceParts, LayerConfig
from qartsr_lib.quant.learned import LearnedQuantizer
from qartsr_lib.training.finetuning.phases import Phase, Term, block_groups, in_order, split


@register_layers("finetune")
class FinetuneLayer(ChannelScaledLayer):
    """Eq. (9).

    Attributes:
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k), from the truncated SVD of W (as SVDQuant starts).
        merged_out, merged_in: F1 (c_out, r'), zero, and F2 (r', c_in k k), Kaiming uniform (as LoRA starts).

    Args of the layer kind:
        side_rank, merged_rank: r and r', cut to full rank; None for the rule of `scaled_rank`.
    """

    quantizer_type = LearnedQuantizer

    def _add_quantizers(
        self, config: LayerConfig, name: str, *, side_rank: int | None = None, merged_rank: int | None = None
    ) -> None:
        super()._add_quantizers(config, name)
        weight = self.weight.detach()
        side, merged = (
            low_rank.scaled_rank(weight, divisor) if rank is None else min(rank, weight[0].numel(), len(weight))
            for rank, divisor in ((side_rank, low_rank.SIDE_DIVISOR), (merged_rank, low_rank.MERGED_DIVISOR))
        )
        self.side_out, self.side_in = (nn.Parameter(factor.clone()) for factor in low_rank.truncated_svd(weight, side))
        self.merged_out = nn.Parameter(weight.new_zeros(len(weight), merged))
        self.merged_in = nn.Parameter(low_rank.kaiming_start(merged, weight[0].numel(), weight))

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        """L, F, phi and the bounds of all quantizers; never W or B."""
        return {
            "side": [self.side_out, self.side_in],
            "merged": [self.merged_out, self.merged_in],
            "phi": [self.log_phi],
            "bounds": self.quantizer_parameters(),
        }

    def folded_weight(self) -> torch.Tensor:
        """phi (R + F1 F2), like W: what Q_W sees."""
        log_phi = broadcast_along(self.log_phi, 1, self.weight.ndim)
        return _FoldedWeight.apply(self.weight, *self.low_rank_factors(), log_phi)

    def low_rank_factors(self) -> tuple[torch.Tensor, ...]:
        return self.merged_out, self.merged_in, self.side_out, self.side_in

    def inference_parts(self) -> InferenceParts:
        return replace(super().inference_parts(), side_out=self.side_out, side_in=self.side_in)

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        return low_rank.side_branch(self, x)

    def _in_few_passes(self, x: torch.Tensor) -> torch.Tensor:
        quantized, narrow = few_passes.enter(self, x, self.side_in)
        return few_passes.add_side(self, self._operate(quantized, *few_passes.parameters(self)), narrow, self.side_out)


class _FoldedWeight(torch.autograd.Function):
    """phi (W + F1 F2 - L1 L2) as one node, W being constant.

    Weights are tiny, and a network has hundreds of them: differentiated operation by operation, the overhead of these
    operations is a good part of a step on small images.
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


#: Option `loss` -> the quantities of Eq. (8) that RPQ uses.
LOSSES = {"both": ("features", "image"), "module": ("features",), "image": ("image",)}


class QArtSR(TrainedMethod):
    """QArtSR's second and third stage (sections 3.3 and 3.4).

    Options:
        rpq: share of the images that RPQ gets, in equal parts per module; ET gets the rest.
        order: in which RPQ takes the modules up, "reverse" (the paper's), "inference" or "random".
        loss: of RPQ, "both" (Eq. 8), "module" or "image".
    """

    layer_kind = "finetune"
    rates = (("side", 1e-5), ("merged", 1e-5), ("phi", 1e-5), ("bounds", 1e-5))
    own_options = {"rpq": 0.5, "order": "reverse", "loss": "both"}

    def phases(self, backbone: nn.Module, images: int, seed: int, *, rpq: float, order: str, loss: str) -> list[Phase]:
        if loss not in tuple(LOSSES):
            raise QartsrError(f"option loss={loss!r}: choose one of {', '.join(LOSSES)}")
        if not isinstance(rpq, (int, float)) or not 0 <= rpq <= 1:
            raise QartsrError(f"option rpq={rpq!r}: is a share, choose 0 to 1")
        groups = in_order(block_groups(backbone), order, seed)
        for_rpq, plan = round(images * rpq), []
        if for_rpq:
            shares = split(for_rpq, len(groups))
            terms = [tuple(Term(q, group[-1] if q == "features" else "") for q in LOSSES[loss]) for group in groups]
            plan = [Phase(*part) for part in zip(groups, shares, terms, strict=True)]
        if images > for_rpq:
            everything = tuple(name for group in groups for name in group)
            plan.append(Phase(() if for_rpq else everything, images - for_rpq, (Term("image"),)))
        return plan


#: r' is EfficientDM's, r fits Table 2's constant term; both made for 320 to 1,280 channels.
PUBLISHED_RANKS = {"merged_rank": 32, "side_rank": 4}

METHODS.register("qartsr")(QArtSR("qartsr", "QArtSR"))
METHODS.register("qartsr-ranks")(QArtSR("qartsr-ranks", "QArtSR [published ranks]", **PUBLISHED_RANKS))
