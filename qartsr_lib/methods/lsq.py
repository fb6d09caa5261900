"""LSQ / LSQ+ (arXiv:1902.08153, 2004.09576): learned step size and offset, straight-through rounding.

The rival papers cite LSQ and LSQ+ for the same rows. Here weights are frozen and each quantizer's scale and offset are
learned ("LSQ"), or the weights are trained along ("LSQ [QAT]"), as in the papers themselves. Not copied from the
released ports: an initial activation scale of 1, an EMA of the offset that averages the scale, and steps that may
become negative.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.learned import power_of_two
from qartsr_lib.quant.primitives import SCALE_FLOOR, round_ste
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.training.finetuning.phases import Term


class StepQuantizer(Quantizer):
    """Fake quantization with a trainable step size and offset, LSQ+'s Eq. 1.

    Parameters are held over the power of two nearest the first step, as in quant.learned, so that one learning rate
    suits all layers. Gradients are scaled by 1 / sqrt(numel Q_P) as in LSQ, section 2.2; Adam divides that out again up
    to its epsilon.
    """

    scales_gradients = True

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        if config.symmetric:
            raise QartsrError(f"{name}: LSQ+ with an offset needs an asymmetric quantizer; set symmetric to False")
        self.register_buffer("unit", torch.ones_like(self.scale))
        self.step_units = nn.Parameter(torch.full_like(self.scale, torch.nan))
        self.offset_units = nn.Parameter(torch.full_like(self.scale, torch.nan))

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Step size (kept positive) and offset (whole steps where zero-points are integers), differentiable."""
        super().qparams(x)  # un-calibrated: tells so
        share = x.numel() / self.scale.numel() * self.code_range[1]
        factor = 1.0 / math.sqrt(share) if self.scales_gradients else 1.0
        step = (_with_gradient_times(self.step_units, factor) * self.unit).clamp(min=SCALE_FLOOR)
        offset = _with_gradient_times(self.offset_units, factor) * self.unit
        if self.config.zero_point == "integer":
            lowest, highest = self.code_range
            offset = -round_ste(-offset / step).clamp(0, highest - lowest) * step
        return step, offset

    @torch.no_grad()
    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        super().set_range(lower, upper)
        self.unit.copy_(power_of_two(self.scale))
        self.step_units.copy_(self.scale / self.unit)
        self.offset_units.copy_(self.zero_point / self.unit)


def _with_gradient_times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x, whose gradient is multiplied by `factor` (LSQ, appendix A)."""
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())  # the value is x's to the bit


@register_layers("steps")
class StepLayer(QuantLayer):
    """A plain quantized layer with trainable quantizers and, by its option `train_weights`, weight and bias."""

    quantizer_type = StepQuantizer

    def _add_quantizers(self, config, name: str, *, train_weights: bool = False) -> None:
        self.trains_weights = train_weights
        self.requires_grad_(train_weights)
        super()._add_quantizers(config, name)

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        kinds = {"steps": self.quantizer_parameters()}
        if self.trains_weights:
            kinds["weights"] = [p for p in (self.weight, self.bias) if p is not None]
        return kinds


class LSQ(TrainedMethod):
    """Scale and offset of every quantizer, trained end to end by the image loss (LSQ's papers use the task's)."""

    layer_kind = "steps"
    rates = (("steps", 1e-4), ("weights", 1e-5))
    terms = (Term("image"),)


METHODS.register("lsq")(LSQ("lsq", "LSQ", train_weights=False))
METHODS.register("lsq-qat")(LSQ("lsq-qat", "LSQ [QAT]", train_weights=True))
