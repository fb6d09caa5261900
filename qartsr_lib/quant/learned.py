"""A quantizer whose range is trained: learnable bounds, the "quantization parameters" of QArtSR section 3.4."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.primitives import SCALE_FLOOR, affine_qparams, fake_quantize, fake_quantize_gradients
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig


class LearnedQuantizer(Quantizer):
    """Asymmetric fake quantization with trainable bounds l and u (LBQ, PassionSR, arXiv:2411.17106).

    scale = (u - l) / (2^b - 1) and z = l, so that gradients reach both bounds by the chain rule through Eq. 3. The
    bounds start at the range that `set_range` or calibration gives; the buffers `scale` and `zero_point` keep it.

    The parameters `lower_units` and `upper_units` are the bounds over `unit`, the power of two nearest the first
    range's width: one learning rate then means the same share of the range in every layer, where bounds themselves
    differ by orders of magnitude. A symmetric configuration, which has no two bounds, is a QartsrError.
    """

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        if config.symmetric:
            raise QartsrError(f"{name}: learned bounds need an asymmetric quantizer; set symmetric to False")
        self.register_buffer("unit", torch.ones_like(self.scale))
        self.lower_units = nn.Parameter(torch.full_like(self.scale, torch.nan))
        self.upper_units = nn.Parameter(torch.full_like(self.scale, torch.nan))

    @property
    def lower(self) -> torch.Tensor:
        """l, in the granularity's parameter shape."""
        return self.lower_units * self.unit

    @property
    def upper(self) -> torch.Tensor:
        """u, in the granularity's parameter shape."""
        return self.upper_units * self.unit

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point of the present bounds, differentiable in them."""
        super().qparams(x)  # un-calibrated: tells so
        return affine_qparams(self.lower, self.upper, self.config.bits, self.config.zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat of Eq. 3 for the present bounds, same shape as x."""
        if self.config.zero_point != "real" or not torch.is_grad_enabled():
            return super().forward(x)
        super().qparams(x)
        grouped = self.config.granularity.view(x)
        bounds = (self.lower_units, self.upper_units, self.unit)
        how = (*self.code_range, self.reach)
        return _FakeQuantizeBounds.apply(grouped, *bounds, self.config.bits, *how).reshape(x.shape)

    @torch.no_grad()
    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        super().set_range(lower, upper)
        self.unit.copy_(power_of_two(upper - lower))
        self.lower_units.copy_(lower / self.unit)
        self.upper_units.copy_(upper / self.unit)


class RoundFirstQuantizer(LearnedQuantizer):
    """One that rounds before it clips, as PassionSR's released code: gradients reach half a step further."""

    reach = 0.5


def power_of_two(width: torch.Tensor) -> torch.Tensor:
    """The power of two nearest `width`, elementwise; multiplying and dividing by it is exact."""
    return torch.exp2(width.double().clamp(min=SCALE_FLOOR).log2().round()).to(width.dtype)


def gradients_of_bounds(grad_scale, grad_zero_point, scale, unit, levels):
    """Those of lower_units and upper_units: scale = (upper - lower) / levels above its floor, zero_point = lower."""
    grad_upper = torch.where(scale > SCALE_FLOOR, grad_scale / levels, 0.0)
    return (grad_zero_point - grad_upper).mul_(unit), grad_upper.mul_(unit)


class _FakeQuantizeBounds(torch.autograd.Function):
    """fake_quantize(x, *affine_qparams(lower_units * unit, upper_units * unit, bits)) as one node.

    The bounds are tiny, and a network has hundreds of them: differentiated operation by operation, the overhead of
    these operations is a good part of a step on small images.
    """

    @staticmethod
    def forward(ctx, x, lower_units, upper_units, unit, bits, qmin, qmax, reach):
        scale, zero_point = affine_qparams(lower_units * unit, upper_units * unit, bits)
        ctx.save_for_backward(x, scale, zero_point, unit)
        ctx.how = (qmin, qmax, reach)
        return fake_quantize(x, scale, zero_point, qmin, qmax)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, scale, zero_point, unit = ctx.saved_tensors
        qmin, qmax, _ = ctx.how
        grad_x, grad_scale, grad_zero_point = fake_quantize_gradients(gradient, x, scale, zero_point, *ctx.how)
        wanted = (grad_x, *gradients_of_bounds(grad_scale, grad_zero_point, scale, unit, qmax - qmin))
        needed = zip(wanted, ctx.needs_input_grad, strict=False)
        return *(found if needs else None for found, needs in needed), *[None] * 5
