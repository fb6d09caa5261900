"""SVDQuant (arXiv:2411.05007): outliers moved to the weight, its largest singular part kept in 16 bits. No training.

    y = L1 L2 x~ + Q_W(W~ - L1 L2) Q_A(x~) + Q_B(B),    x~ = x / phi, W~ = phi W

phi is searched on a grid by the layer's output error, then L is refined: L <- SVD_r(W~ - Q(W~ - L)), as long as the
output error falls (deepcompressor). "SVDQuant [as released]" has the released code's far finer quantizers. What
deepcompressor leaves in 16 bits (ResNet convolutions, samplers, projections) is quantized by both: on a convolutional
network nothing would be otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from qartsr_lib.methods.base import METHODS, CalibratedMethod, register_layers
from qartsr_lib.methods.channel_layers import ChannelScaledLayer
from qartsr_lib.methods.low_rank import SIDE_DIVISOR, scaled_rank, side_branch, truncated_svd
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.layers import InferenceParts, LayerConfig
from qartsr_lib.quant.quantizers import DynamicQuantizer
from qartsr_lib.quant.scheme import SHARED_SETTING

REFINEMENTS = 100
GRID = 20
SAMPLES = 4  # calibration images whose layer inputs are kept for the output errors


@register_layers("smoothed")
class SmoothedLayer(ChannelScaledLayer):
    """Keeps some inputs while calibrating.

    Attributes:
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k); they see the smoothed input x~.
    """

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        super()._add_quantizers(config, name)
        self.log_phi.requires_grad_(False)
        rank = scaled_rank(self.weight, SIDE_DIVISOR)
        self.register_buffer("side_out", self.weight.new_zeros(len(self.weight), rank))
        self.register_buffer("side_in", self.weight.new_zeros(rank, self.weight[0].numel()))
        self._inputs: list[torch.Tensor] = []
        self._wanted: list[torch.Tensor] = []

    def observe(self, x: torch.Tensor) -> None:
        super().observe(x)
        if len(self._inputs) < SAMPLES:
            self._inputs.append(x.clone())

    def forget(self) -> None:
        super().forget()
        self._inputs, self._wanted = [], []

    def folded_weight(self) -> torch.Tensor:
        """W~ - L1 L2: what Q_W sees."""
        return self.times_phi(self.weight) - (self.side_out @ self.side_in).view_as(self.weight)

    def inference_parts(self) -> InferenceParts:
        side = {"side_out": self.side_out, "side_in": self.side_in, "side_after_scaling": True}
        return replace(super().inference_parts(), **side)

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        return side_branch(self, self.scaled_input(x))

    @torch.no_grad()
    def start(self) -> None:
        """Choose phi by the grid search, then refine L, both by the error of the output on kept inputs."""
        inputs, weight = (values.log() for values in self.largest())
        self._wanted = [self._operate(x, self.weight, self.bias) for x in self._inputs]
        candidates, errors = list(_candidates(inputs, weight)), []
        for log_phi in candidates:
            self.set_phi(log_phi)
            errors.append(self.output_error())
        best = min(range(len(errors)), key=errors.__getitem__)
        self.set_phi(candidates[best])
        self._refine(errors[best])
        self.forget()

    def set_phi(self, log_phi: torch.Tensor) -> None:
        """Take phi, and L from the smoothed weight."""
        self.log_phi.copy_(log_phi)
        self._set_side(*truncated_svd(self.times_phi(self.weight), len(self.side_in)))

    def output_error(self) -> float:
        """Sum over kept inputs of the output's mean squared distance to the float layer's."""
        (weight, bias), error = self._quantize_parameters(), 0.0
        for x, wanted in zip(self._inputs, self._wanted, strict=True):
            quantized = self.quantized_input(self.scaled_input(x))
            error += float(F.mse_loss(self._operate(quantized, weight, bias) + self.correction(x), wanted))
        return error

    def _refine(self, error: float) -> None:
        whole = self.times_phi(self.weight)
        for _ in range(REFINEMENTS if self.weight_quantizer is not None else 0):
            kept = self.side_out.clone(), self.side_in.clone()
            self._set_side(*truncated_svd(whole - self.weight_quantizer(self.folded_weight()), len(self.side_in)))
            now = self.output_error()
            if now >= error:
                self._set_side(*kept)
                return
            error = now

    def _set_side(self, side_out: torch.Tensor, side_in: torch.Tensor) -> None:
        self.side_out.copy_(side_out)
        self.side_in.copy_(side_in)
        self.set_ranges()


def _candidates(inputs: torch.Tensor, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """deepcompressor's log phi from log max|x| and log max|W|, (c_in,) each.

    phi = max|x|^a / max|W|^b for (a, b) = (0, 0), (a, 0), (a, 1 - a), a = 1/20 .. 19/20.
    """
    yield torch.zeros_like(inputs)
    for step in range(1, GRID):
        alpha = step / GRID
        yield alpha * inputs
        yield alpha * inputs - (1 - alpha) * weight


@register_layers("smoothed-dynamic")
class DynamicLayer(SmoothedLayer):
    """One whose activation quantizer has no range to be set."""

    input_quantizer_type = DynamicQuantizer


GROUP = 64  # of input channels; a convolution's are shared over the kernel, activations are dynamic per token
RELEASED_SETTING = replace(
    SHARED_SETTING,
    weight_granularity=PerGroup(GROUP),
    weight_symmetric=True,
    activation_granularity=PerGroup(GROUP),
    activation_symmetric=True,
    bias_bits=None,
    layer_kind="smoothed-dynamic",
)

for _name, _label, _setting in (
    ("svdquant", "SVDQuant", replace(SHARED_SETTING, layer_kind="smoothed")),
    ("svdquant-released", "SVDQuant [as released]", RELEASED_SETTING),
):
    METHODS.register(_name)(CalibratedMethod(_name, _label, _setting))
