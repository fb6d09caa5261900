"""Uniform fake quantization as pure functions (QArtSR Eqs. 3 and 4).

Convention. With integer codes in [qmin, qmax], a scale s and an offset z in the units of x:

    code  = clip(round((x - z) / s), qmin, qmax)      Eq. 3
    x_hat = s * code + z

z is called `zero_point` as in the paper, although torch uses that name for the integer code of zero (here -z / s,
an integer only in the "integer" variant). Rounding is torch.round, ties to even. The symmetric variant has no
offset (`zero_point` is None) and signed codes.

Gradients are the straight-through ones of Eq. 4: 1 for x inside [s qmin + z, s qmax + z], 0 outside, and those of LSQ+
(arXiv:2004.09576) for s and z. Learned bounds (LBQ of PassionSR, arXiv:2411.17106) follow by the chain rule through
`affine_qparams`. NaN passes through; infinities end at the borders of the range. |x| must stay below 1e38, beyond which
s * code overflows in float32.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from qartsr_lib.quant import loops

SCALE_FLOOR = 1e-12
"""Smallest scale: keeps constant tensors (range 0) free of division by zero."""


def integer_range(bits: int, symmetric: bool = False, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest code of 2 to 8 bits: 0 .. 2^b - 1, or symmetric -2^(b-1) .. 2^(b-1) - 1.

    A `narrow` symmetric range leaves out the first, as SVDQuant's released code does: -7 .. 7 at 4 bits.
    """
    lowest = -(2 ** (bits - 1)) if symmetric else 0
    return lowest + (symmetric and narrow), lowest + 2**bits - 1


def affine_qparams(
    lower: torch.Tensor, upper: torch.Tensor, bits: int, zero_point: str = "real"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset that spread 2^b codes over [lower, upper]; differentiable in both.

    Args:
        lower, upper: any equal shapes; upper <= lower gives the scale floor.
        bits: 2 to 8.
        zero_point: "real" puts the first code exactly on `lower` and the last on `upper`. "integer" widens the range
            to include 0 and rounds the code of zero to an integer, as torch does: 0 is then exact, but up to half a
            step is clipped at one end.

    Returns (scale, zero_point) with the shape and dtype of `lower`; zero_point in the units of x.
    """
    levels = 2**bits - 1
    # float64, because upper - lower of two large float32 numbers may overflow or cancel.
    low, high = lower.double(), upper.double()
    if zero_point == "integer":
        low, high = low.clamp(max=0), high.clamp(min=0)
    exact_scale = ((high - low) / levels).clamp(min=SCALE_FLOOR)
    scale = exact_scale.to(lower.dtype)
    if zero_point == "real":
        return scale, lower
    if zero_point != "integer":
        raise ValueError(f"zero_point must be 'real' or 'integer', got {zero_point!r}")
    # By the exact scale: a range symmetric around 0 is a tie here, which rounding must not decide.
    code_of_zero = round_ste(-low / exact_scale).clamp(0, levels).to(lower.dtype)
    return scale, -(code_of_zero * scale)


def symmetric_qparams(lower: torch.Tensor, upper: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """Smallest scale whose signed codes, qmin < 0 to qmax, cover [lower, upper] without clipping; differentiable."""
    scale = torch.maximum(lower.double() / qmin, upper.double() / qmax)
    return scale.clamp(min=SCALE_FLOOR).to(lower.dtype)


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    reach: float = 0.0,
) -> torch.Tensor:
    """x_hat of Eq. 3, a new tensor like x; differentiable in x, scale and zero_point (Eq. 4).

    The bits are the same with and without gradients.

    Args:
        x: any shape, float32.
        scale, zero_point: broadcast to x; the scale is positive, the offset in the units of x or None.
        qmin, qmax: code range from `integer_range`.
        reach: how many steps beyond the range count as inside it, for gradients alone. 0.5 gives those of
            clip(round(v)), as in the released code of EfficientDM and PassionSR, instead of round(clip(v)).
    """
    inputs = (x, scale, zero_point)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _FakeQuantize.apply(*inputs, qmin, qmax, reach)
    return _fake_quantize(*inputs, qmin, qmax)


@torch.no_grad()
def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> torch.Tensor:
    """The codes of Eq. 3, as whole numbers in the dtype of x; no gradient."""
    return _to_codes_(_steps(x, scale, zero_point), qmin, qmax)


@torch.no_grad()
def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    """x_hat from codes; dequantize(quantize(x)) has the bits of fake_quantize(x)."""
    return _from_codes_(codes.clone(), scale, zero_point)


# Activations are memory-bound (512 x 512 x 32 float32): compiled loops do each formula in one pass where they apply
# (`loops`); elsewhere the steps below work in place on one temporary. Each step is one correctly rounded IEEE operation
# (no fused multiply-add), so that results depend neither on the machine's vectors nor on which of the two did it.


def _fake_quantize(x, scale, zero_point, qmin, qmax):
    found = loops.fake_quantize(x, scale, zero_point, qmin, qmax)
    if found is None:
        found = _from_codes_(_to_codes_(_steps(x, scale, zero_point), qmin, qmax), scale, zero_point)
    return found


def _steps(x, scale, zero_point):
    """(x - z) / s in a new tensor: x measured in quantization steps."""
    return x / scale if zero_point is None else torch.sub(x, zero_point).div_(scale)


def _to_codes_(steps, qmin, qmax):
    return steps.clamp_(qmin, qmax).round_()


def _from_codes_(codes, scale, zero_point):
    codes.mul_(scale)
    return codes if zero_point is None else codes.add_(zero_point)


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """torch.round with the gradient of the identity; x is finite."""
    return x.round().detach() + (x - x.detach())


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax, reach):
        ctx.how = (qmin, qmax, reach)
        if any(ctx.needs_input_grad[1:3]):
            ctx.save_for_backward(x, scale, zero_point)
            return _fake_quantize(x, scale, zero_point, qmin, qmax)
        steps = _steps(x, scale, zero_point)  # a byte per element instead of keeping x alive
        ctx.save_for_backward((steps >= qmin - reach) & (steps <= qmax + reach))
        return _from_codes_(_to_codes_(steps, qmin, qmax), scale, zero_point)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        needed = ctx.needs_input_grad[:3]
        if any(needed[1:]):
            gradients = fake_quantize_gradients(gradient, *ctx.saved_tensors, *ctx.how)
        else:
            gradients = (torch.where(*ctx.saved_tensors, gradient, 0.0), None, None)
        return *(found if needs else None for found, needs in zip(gradients, needed, strict=True)), None, None, None


def fake_quantize_gradients(gradient, x, scale, zero_point, qmin, qmax, reach=0.0):
    """Those of `fake_quantize` with respect to x, scale and zero_point, given that of its result.

    Where PyTorch does it, written in few passes over x: torch.where, because a product with a mask first
    writes the mask out as floats; g - g_inside, which is exact, for the gradient outside.
    """
    found = loops.fake_quantize_gradients(gradient, x, scale, zero_point, qmin, qmax, reach)
    if found is not None:
        return found
    steps = _steps(x, scale, zero_point)
    codes = steps.clamp(qmin, qmax)
    inside = (steps >= qmin - reach) & (steps <= qmax + reach)
    grad_x = torch.where(inside, gradient, 0.0)
    # 0 inside, 1 where clipped
    grad_zero_point = None if zero_point is None else (gradient - grad_x).sum_to_size(zero_point.shape)
    # round(v) - v inside, qmin or qmax where clipped
    rounding = codes.round_().sub_(torch.where(inside, steps, 0.0))
    return grad_x, rounding.mul_(gradient).sum_to_size(scale.shape), grad_zero_point
