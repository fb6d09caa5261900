"""QArtSR's finetuning quantizer for Linear and Conv2d (Eq. 9).

    y = L1 L2 x + Q_W(phi (R + F1 F2)) Q_A(x / phi) + Q_B(B),    R = W - L1 L2

W is frozen. L1 L2 is a side branch in 16 bits, F1 F2 is merged into the quantized weight, phi is one
positive factor per input channel. All of them, and the bounds of the quantizers, are trained.
What the paper leaves open (ranks, starts) is listed in DEVIATIONS.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.layers import LAYER_KINDS, LayerConfig, QuantConv2d, QuantLayer, QuantLinear
from qartsr_lib.quant.learned import LearnedQuantizer
from qartsr_lib.quant.quantizers import QPARAM_BITS
from qartsr_lib.quant.states import QuantState

SIDE_DIVISOR = 80
MERGED_DIVISOR = 10
PHI_EXPONENT = 0.3
_SMALLEST = 1e-6  # of the maxima that phi starts from: dead channels give no factor


def scaled_rank(weight: torch.Tensor, divisor: int) -> int:
    """max(1, round(min(c_in k^2, c_out) / divisor)): the papers' ranks, made for 320 to 1,280 channels, to scale."""
    return max(1, round(min(weight[0].numel(), len(weight)) / divisor))


class FinetuneLayer(QuantLayer):
    """Common part of FinetuneLinear and FinetuneConv2d.

    Calibration records the range of every input channel; `start` then sets phi and all bounds.

    Attributes:
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k), from the truncated SVD of W (as SVDQuant starts).
        merged_out, merged_in: F1 (c_out, r'), zero, and F2 (r', c_in k k), Kaiming uniform (as LoRA starts).
        log_phi: (c_in,); phi = exp(log_phi) stays positive.
    """

    quantizer_type = LearnedQuantizer

    def _add_quantizers(
        self,
        config: LayerConfig,
        name: str,
        *,
        side_divisor: int = SIDE_DIVISOR,
        merged_divisor: int = MERGED_DIVISOR,
    ) -> None:
        if getattr(self, "groups", 1) != 1:
            raise QartsrError(f"{name}: a grouped convolution has no low-rank branch; exclude it with `only`")
        super()._add_quantizers(config, name)
        weight = self.weight.detach()
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        rank, merged = scaled_rank(weight, side_divisor), scaled_rank(weight, merged_divisor)
        self.side_out = nn.Parameter(left[:, :rank] * singular[:rank])
        self.side_in = nn.Parameter(right[:rank].clone())
        self.merged_out = nn.Parameter(weight.new_zeros(len(weight), merged))
        self.merged_in = nn.Parameter(weight.new_empty(merged, weight[0].numel()))
        nn.init.kaiming_uniform_(self.merged_in, a=math.sqrt(5))
        self.log_phi = nn.Parameter(weight.new_zeros(weight.shape[1]))
        self._lowest = self._highest = None

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What finetuning updates: L, F, phi and the bounds of all quantizers; never W or B."""
        quantizers = (self.weight_quantizer, self.input_quantizer, self.bias_quantizer)
        return {
            "side": [self.side_out, self.side_in],
            "merged": [self.merged_out, self.merged_in],
            "phi": [self.log_phi],
            "bounds": [p for quantizer in quantizers if quantizer is not None for p in quantizer.parameters()],
        }

    def folded_weight(self) -> torch.Tensor:
        """phi (R + F1 F2), like W: what Q_W sees."""
        change = self.merged_out @ self.merged_in - self.side_out @ self.side_in
        return self._along_input(self.log_phi.exp(), axis=1) * (self.weight + change.view_as(self.weight))

    def _quantize_parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = self.folded_weight()
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return weight, self.bias if self.bias_quantizer is None else self.bias_quantizer(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is QuantState.CALIBRATING:
            self._observe(x.detach())
        if self.state is not QuantState.QUANTIZED:
            return super().forward(x)
        scaled = x / self._along_input(self.log_phi.exp(), axis=x.ndim + self.input_axis, ndim=x.ndim)
        if self.input_quantizer is not None:
            scaled = self.input_quantizer(scaled)
        return self._operate(scaled, *self.quantized_parameters()) + self._side_branch(x)

    def _along_input(self, values: torch.Tensor, axis: int, ndim: int | None = None) -> torch.Tensor:
        """(c_in,) reshaped to broadcast along `axis` of a tensor of `ndim` (the weight's) dimensions."""
        shape = [1] * (ndim or self.weight.ndim)
        shape[axis] = -1
        return values.view(shape)

    def _side_branch(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def activation_quantizers(self) -> list[LearnedQuantizer]:
        return []  # `start` sets the input's range, which depends on phi

    def _observe(self, x: torch.Tensor) -> None:
        channels = x.movedim(self.input_axis, 0).flatten(1)
        lowest, highest = channels.amin(dim=1), channels.amax(dim=1)
        self._lowest = lowest if self._lowest is None else torch.minimum(self._lowest, lowest)
        self._highest = highest if self._highest is None else torch.maximum(self._highest, highest)

    @torch.no_grad()
    def start(self, exponent: float = PHI_EXPONENT) -> None:
        """Set phi = (max|x| / max|W|)^exponent per input channel, then the bounds of input and weight.

        Args:
            exponent: 0.3 as in PassionSR's released configuration; 0 for phi = 1.

        Raises:
            QartsrError: nothing was observed, or not finite values.
        """
        if self._lowest is None:
            raise QartsrError(f"{self.name}: nothing observed; run calibrate() over some images before start()")
        largest = torch.maximum(self._lowest.abs(), self._highest.abs()).clamp(min=_SMALLEST)
        weight = self.weight.abs().movedim(1, 0).flatten(1).amax(dim=1).clamp(min=_SMALLEST)
        self.log_phi.copy_(exponent * (largest / weight).log())
        phi = self.log_phi.exp()
        if self.input_quantizer is not None:
            shape = self.input_quantizer.scale.shape
            lower, upper = (self._lowest / phi).min(), (self._highest / phi).max()
            self.input_quantizer.set_range(lower.reshape(shape), upper.reshape(shape))
        if self.weight_quantizer is not None:
            self.weight_quantizer.set_range_from(self.folded_weight())
        self._lowest = self._highest = None

    @property
    def side_branch_bits(self) -> int:
        """L1, L2 and phi in 16 bits; F is merged and costs nothing."""
        return QPARAM_BITS * (self.side_out.numel() + self.side_in.numel() + self.log_phi.numel())


class FinetuneLinear(FinetuneLayer, QuantLinear):
    """Eq. 9 for nn.Linear; (..., c_in) -> (..., c_out)."""

    def _side_branch(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.side_in), self.side_out)


class FinetuneConv2d(FinetuneLayer, QuantConv2d):
    """Eq. 9 for nn.Conv2d: L2 is a k x k convolution to r channels, L1 a 1 x 1 convolution."""

    def _side_branch(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self._conv_forward(x, self.side_in.view(-1, *self.weight.shape[1:]), None)
        return F.conv2d(narrow, self.side_out[:, :, None, None])


LAYER_KINDS.register("finetune")({nn.Linear: FinetuneLinear, nn.Conv2d: FinetuneConv2d})
