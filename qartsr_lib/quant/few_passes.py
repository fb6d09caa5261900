"""What surrounds the product of a trained layer, in few passes over memory: Q_A(x / phi), L1 L2 x, Q_W(phi W), Q_B(B).

For layers of `methods.channel_layers` on the CPU. Written operation by operation, these passes take as long as the
products themselves; here they are a few autograd nodes over compiled loops. Where `fits` says no, the layers do the
same by PyTorch's operations; quantized values then have the same bits, L1 L2 x and gradients another order of sums.
"""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.base.native import at
from qartsr_lib.quant import loops
from qartsr_lib.quant.granularity import PerTensor
from qartsr_lib.quant.learned import LearnedQuantizer, RoundFirstQuantizer, gradients_of_bounds
from qartsr_lib.quant.primitives import affine_qparams


def fits(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether `enter` and `add_side` can do `layer`'s work on x."""
    quantizer = layer.input_quantizer
    if type(quantizer) not in (LearnedQuantizer, RoundFirstQuantizer) or not quantizer.calibrated:
        return False
    simple = isinstance(quantizer.config.granularity, PerTensor) and quantizer.config.zero_point == "real"
    if isinstance(layer, nn.Conv2d):
        simple = simple and layer.padding_mode == "zeros" and layer.dilation == (1, 1) and x.ndim == 4
        simple = simple and not isinstance(layer.padding, str)
    return simple and loops.plain(x, layer.weight) and loops.library() is not None


def enter(layer: nn.Module, x: torch.Tensor, side_in: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Q_A(x / phi), like x, and L2 x, (N, H', W', r) or (..., r); None without `side_in` (r, c_in k k)."""
    quantizer, sizes, shape = layer.input_quantizer, None, None
    if side_in is not None:
        if isinstance(layer, nn.Conv2d):
            window, (images, channels, *size) = (layer.kernel_size, layer.stride, layer.padding), x.shape
            ends = (length + 2 * pad - taps for length, taps, pad in zip(size, window[0], window[2], strict=True))
            shape = (images, *(end // step + 1 for end, step in zip(ends, window[1], strict=True)), len(side_in))
        else:  # a convolution of 1 x 1 whose pixels are the tokens
            window, (*tokens, channels) = ((1, 1), (1, 1), (0, 0)), x.shape
            images, size, shape = 1, (1, x.numel() // channels), (*tokens, len(side_in))
        sizes = (ctypes.c_long * 11)(images, *size, channels, len(side_in), *window[0], *window[1], *window[2])
        side_in = side_in.view(len(side_in), channels, *window[0]).movedim(1, -1).contiguous()
    bounds = (quantizer.lower_units, quantizer.upper_units, quantizer.unit)
    given = (x.contiguous(memory_format=_layout(layer)), layer.log_phi.exp(), *bounds, side_in)
    return _Enter.apply(*given, quantizer.config.bits, quantizer.reach, sizes, shape)


def add_side(layer: nn.Module, y: torch.Tensor, narrow: torch.Tensor, side_out: torch.Tensor) -> torch.Tensor:
    """y + L1 (L2 x), in place where y's layout allows; `side_out` is L1 (c_out, r)."""
    layout = _layout(layer)
    return _AddSide.apply(y.float().contiguous(memory_format=layout), narrow, side_out, layout)  # of autocast


def parameters(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Q_W(phi (W + F1 F2 - L1 L2)) and Q_B(B); the factors are the layer's `low_rank_factors`."""
    weight, bias = layer.weight, layer.bias
    if not (_held(layer.weight_quantizer, weight) and (bias is None or _held(layer.bias_quantizer, bias))):
        return layer.quantized_parameters()
    factors = layer.low_rank_factors()
    quantized = _folded(layer.weight_quantizer, weight, layer.log_phi, *factors)
    return quantized, None if bias is None else _folded(layer.bias_quantizer, bias, None)


def _held(quantizer: nn.Module | None, tensor: torch.Tensor) -> bool:
    """Whether `_folded` can do the quantizer's work on a frozen parameter: learned bounds, one pair per row at most."""
    if type(quantizer) not in (LearnedQuantizer, RoundFirstQuantizer) or quantizer.config.zero_point != "real":
        return False
    rows = quantizer.scale.numel()
    whole = quantizer.calibrated and not tensor.requires_grad and (tensor.is_contiguous() or _channels_last(tensor))
    return whole and loops.plain(tensor) and rows in (1, len(tensor)) and quantizer.scale.shape[:1] in ((), (rows,))


def _channels_last(tensor: torch.Tensor) -> bool:
    """Whether it lies so and not the usual way, which a kernel of 1 x 1 does at once."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _folded(quantizer: LearnedQuantizer, tensor: torch.Tensor, log_phi: torch.Tensor | None, *factors: torch.Tensor):
    bounds = (quantizer.lower_units, quantizer.upper_units, quantizer.unit)
    return _Folded.apply(tensor, log_phi, *bounds, quantizer.config.bits, quantizer.reach, *factors)


def _layout(layer: nn.Module) -> torch.memory_format:
    """In which channels lie behind each other."""
    return torch.channels_last if isinstance(layer, nn.Conv2d) else torch.contiguous_format


class _Enter(torch.autograd.Function):
    """`side_in` is L2 as (r, k, k, c_in), `sizes` the Side of side_branch.cpp, `shape` that of L2 x."""

    @staticmethod
    def forward(ctx, x, phi, lower_units, upper_units, unit, side_in, bits, reach, sizes, shape):
        scale, zero_point = affine_qparams(lower_units * unit, upper_units * unit, bits)
        channels, threads = len(phi), torch.get_num_threads()
        ctx.passes = (float(scale), float(zero_point), x.numel() // channels, channels, 0, 2**bits - 1, threads)
        ctx.reach, ctx.sizes, quantized, narrow = reach, sizes, torch.empty_like(x), None
        loops.library().divided_fake_quantize(*at(x, phi), *ctx.passes, quantized.data_ptr())
        if side_in is not None:
            narrow = x.new_empty(shape)
            loops.library().side_narrow(*at(x, side_in), sizes, threads, narrow.data_ptr())
        ctx.save_for_backward(x, phi, scale, unit, side_in)
        return quantized, narrow

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, grad_narrow):
        x, phi, scale, unit, side_in = ctx.saved_tensors
        *_, levels, threads = ctx.passes
        gradient = loops.laid_out_like(x, gradient)
        grad_x, grad_phi, grad_range, grad_side = torch.empty_like(x), torch.empty_like(phi), phi.new_empty(2), None
        found = at(grad_x, grad_phi, grad_range)
        loops.library().divided_fake_quantize_gradients(*at(gradient, x, phi), *ctx.passes, ctx.reach, *found)
        if side_in is not None:
            grad_side, given = torch.empty_like(side_in), grad_narrow.contiguous()
            loops.library().side_narrow_gradients(*at(given, x, side_in), ctx.sizes, threads, *at(grad_x, grad_side))
        bounds = gradients_of_bounds(*grad_range, scale, unit, levels)
        return grad_x, grad_phi, *bounds, None, grad_side, *[None] * 4


class _AddSide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, narrow, side_out, layout):
        ctx.mark_dirty(y)
        ctx.layout = layout
        weight = side_out.t().contiguous()
        ctx.save_for_backward(narrow, weight)
        ctx.sizes = (narrow.numel() // len(weight), *weight.shape, torch.get_num_threads())
        loops.library().side_spread(*at(narrow, weight), *ctx.sizes, y.data_ptr())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        narrow, weight = ctx.saved_tensors
        given = gradient.contiguous(memory_format=ctx.layout)
        grad_narrow, grad_weight = torch.empty_like(narrow), torch.empty_like(weight)
        loops.library().side_spread_gradients(*at(given, narrow, weight), *ctx.sizes, *at(grad_narrow, grad_weight))
        return gradient, grad_narrow, grad_weight.t(), None


class _Folded(torch.autograd.Function):
    """Fake quantization of phi (W + F1 F2 - L1 L2), W being constant; `factors` are F1, F2, L1, L2 or none."""

    @staticmethod
    def forward(ctx, weight, log_phi, lower_units, upper_units, unit, bits, reach, *factors):
        residual, found, rows = weight, torch.empty_like(weight), unit.numel()
        if factors:
            merged_out, merged_in, side_out, side_in = factors
            change = (merged_out @ merged_in).sub_(side_out @ side_in).view_as(weight)
            residual = torch.add(weight, change, out=torch.empty_like(weight))
        phi, channels, taps = None, 1, 1
        if log_phi is not None:
            phi, channels, taps = log_phi.exp(), len(log_phi), weight[0, 0].numel()
        ctx.sizes = (ctypes.c_long * 5)(rows, weight.numel() // rows, channels, taps, _channels_last(weight))
        ctx.how, bounds = (2**bits - 1, reach, torch.get_num_threads()), (lower_units, upper_units, unit)
        loops.library().folded(*at(residual, phi, *bounds), ctx.sizes, *ctx.how[::2], found.data_ptr())
        ctx.save_for_backward(residual, phi, *bounds, *factors)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        residual, phi, lower_units, upper_units, unit, *factors = ctx.saved_tensors
        given = loops.laid_out_like(residual, gradient)
        change, *found = (torch.empty_like(t) if t is not None else None for t in (residual, phi, unit, unit))
        pointers = at(given, residual, phi, lower_units, upper_units, unit)
        loops.library().folded_gradients(*pointers, ctx.sizes, *ctx.how, *at(change, *found))
        if factors:
            (merged_out, merged_in, side_out, side_in), change = factors, change.flatten(1)
            factors = change @ merged_in.t(), merged_out.t() @ change, change @ side_in.t(), side_out.t() @ change
            factors[2].neg_(), factors[3].neg_()
        return None, *found, None, None, None, *factors
