"""SVDQuant (arXiv:2411.05007): outliers moved to the weight, its largest singular part kept in 16 bits. No training.

    y = L1 L2 x~ + Q_W(W~ - L1 L2) Q_A(x~) + Q_B(B),    x~ = x / phi, W~ = phi W

phi is searched on a grid by the layer's output error, then L is refined: L <- SVD_r(W~ - Q(W~ - L)), as long as the
output error falls (deepcompressor). "SVDQuant [as released]" has the released code's far finer quantizers: a scale per
64 input channels and kernel position, as many codes below as above zero, dynamic activations, which are shifted until
they are not negative where an activation function bounds them below. What deepcompressor leaves in 16 bits (shortcuts,
samplers, projections, embeddings; in one of its forms ResNet convolutions too) is quantized by both; a third row leaves
the first four in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from qartsr_lib.methods.base import METHODS, CalibratedMethod, register_layers
from qartsr_lib.methods.channel_layers import ChannelScaledLayer, ShiftedLayer
from qartsr_lib.methods.low_rank import SIDE_DIVISOR, scaled_rank, side_branch, truncated_svd
from qartsr_lib.quant.apply import EVERYTHING
from qartsr_lib.quant.dynamic import TokenQuantizer
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.layers import InferenceParts, LayerConfig
from qartsr_lib.quant.quantizers import QPARAM_BITS
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


SHIFTS = (0.171875, 1141 / 4096)
"""What makes inputs after GELU (at least -0.16998) and SiLU (-0.27846) unsigned; both are numbers of float16."""


@register_layers("smoothed-dynamic")
class DynamicLayer(ShiftedLayer, SmoothedLayer):
    """One whose activation quantizer has no range to be set, and whose input is shifted where it has a lower bound.

    Attributes:
        offset: o, (c_in,): minus the first of SHIFTS that makes all calibration inputs positive, 0 where none does, or
            none is needed.
    """

    input_quantizer_type = TokenQuantizer

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        super()._add_quantizers(config, name)
        self.register_buffer("offset", torch.zeros_like(self.log_phi))

    def shifted_weight(self) -> torch.Tensor:
        """What the layer multiplies by, so that W o takes away what the shift added, and nothing is to be stored."""
        weight, _ = self.quantized_parameters()
        return (weight + (self.side_out @ self.side_in).view_as(weight)) / self.times_phi(torch.ones_like(weight))

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        branch = SmoothedLayer.correction(self, x)
        return branch + ShiftedLayer.correction(self, x) if self.offset.any() else branch

    def _corrected(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # One after the other, as the inference form adds them: sums in another order have other bits.
        shifted = y.add_(ShiftedLayer.correction(self, x)) if self.offset.any() else y
        return shifted.add_(SmoothedLayer.correction(self, x))

    def inference_parts(self) -> InferenceParts:
        parts = super().inference_parts()
        return parts if self.offset.any() else replace(parts, offset=None, behind=None)

    @property
    def side_branch_bits(self) -> int:
        offset, behind = self.inference_parts().offset, self.inference_parts().behind
        derived = 0 if offset is None else offset.numel() - 1 + behind.numel()  # one number is stored, W o follows
        return super().side_branch_bits - QPARAM_BITS * derived

    def start(self) -> None:
        self.largest()  # tells where nothing was observed
        lowest = float(self._lowest.min())
        shift = next((shift for shift in SHIFTS if lowest >= -shift), 0.0) if lowest < 0 else 0.0
        self.offset.fill_(-shift)
        self._lowest, self._highest = self._lowest + shift, self._highest + shift
        super().start()


GROUP = 64  # of input channels; activations are dynamic per token
RELEASED_SETTING = replace(
    SHARED_SETTING,
    weight_granularity=PerGroup(GROUP, per_position=True),
    weight_symmetric=True,
    narrow_range=True,
    activation_granularity=PerGroup(GROUP),
    activation_symmetric=True,
    bias_bits=None,
    layer_kind="smoothed-dynamic",
)

#: All but what deepcompressor's configurations of diffusion models skip: embeddings, shortcuts, projections, samplers.
WITHOUT_SKIPPED = ("*", "!*.conv_in", "!*embedding*", "!*conv_shortcut", "!*time_emb_proj", "!*.proj_in", "!*.proj_out")
WITHOUT_SKIPPED += ("!*samplers.*",)

for _name, _label, _setting, _only in (
    ("svdquant", "SVDQuant", replace(SHARED_SETTING, layer_kind="smoothed"), EVERYTHING),
    ("svdquant-released", "SVDQuant [as released]", RELEASED_SETTING, EVERYTHING),
    ("svdquant-skipping", "SVDQuant [as released, its exceptions float]", RELEASED_SETTING, WITHOUT_SKIPPED),
):
    METHODS.register(_name)(CalibratedMethod(_name, _label, _setting, _only))
