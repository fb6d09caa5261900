"""What surrounds the product of a trained layer, in few passes over memory: Q_A(x / phi) and L1 L2 x.

For layers of `methods.channel_layers` on the CPU. Written operation by operation, these passes take as long as the
products themselves; here they are two autograd nodes over compiled loops. Where `fits` says no, the layers do the
same by PyTorch's operations; Q_A(x / phi) then has the same bits, L1 L2 x another order of summation.
"""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.base.native import at
from qartsr_lib.quant import loops
from qartsr_lib.quant.granularity import PerTensor
from qartsr_lib.quant.learned import LearnedQuantizer, gradients_of_bounds, ranges_of_bounds

Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Kernel size, stride and padding."""


def fits(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether `enter` and `add_side` can do `layer`'s work on x."""
    quantizer = layer.input_quantizer
    if type(quantizer) is not LearnedQuantizer or not quantizer.calibrated:
        return False
    simple = isinstance(quantizer.config.granularity, PerTensor) and quantizer.config.zero_point == "real"
    if isinstance(layer, nn.Conv2d):
        simple = simple and layer.padding_mode == "zeros" and layer.dilation == (1, 1) and x.ndim == 4
        simple = simple and not isinstance(layer.padding, str)
    return simple and loops.plain(x, layer.weight) and loops.library() is not None


def enter(
    layer: nn.Module, x: torch.Tensor, side_in: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Q_A(x / phi), like x, and L2 x, (N, H', W', r) or (..., r); None without `side_in` (r, c_in k k)."""
    quantizer = layer.input_quantizer
    bounds = (quantizer.lower_units, quantizer.upper_units, quantizer.unit)
    window = (layer.kernel_size, layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else None
    options = (quantizer.config.bits, quantizer.code_range, window)
    return _Enter.apply(x.contiguous(memory_format=_layout(layer)), layer.log_phi.exp(), *bounds, side_in, *options)


def add_side(layer: nn.Module, y: torch.Tensor, narrow: torch.Tensor, side_out: torch.Tensor) -> torch.Tensor:
    """y + L1 (L2 x), in place where y's layout allows; `side_out` is L1 (c_out, r)."""
    layout = _layout(layer)
    return _AddSide.apply(y.float().contiguous(memory_format=layout), narrow, side_out, layout)  # of autocast


def _layout(layer: nn.Module) -> torch.memory_format:
    """In which channels lie behind each other."""
    return torch.channels_last if isinstance(layer, nn.Conv2d) else torch.contiguous_format


def _geometry(x: torch.Tensor, rank: int, window: Window | None) -> tuple[ctypes.Array, list[int]]:
    """`Side` of side_branch.cpp, and the shape of L2 x."""
    if window is None:  # (pixels, c_in)
        pixels = x.numel() // x.shape[-1]
        sizes, shape = [1, 1, pixels, x.shape[-1], rank, 1, 1, 1, 1, 0, 0], [*x.shape[:-1], rank]
    else:
        kernel, stride, padding = window
        images, channels, *size = x.shape
        outputs = [(size[axis] + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1)]
        sizes, shape = [images, *size, channels, rank, *kernel, *stride, *padding], [images, *outputs, rank]
    return (ctypes.c_long * len(sizes))(*sizes), shape


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, phi, lower_units, upper_units, unit, side_in, bits, code_range, window):
        scale, zero_point = ranges_of_bounds(lower_units, upper_units, unit, bits)
        channels, threads = len(phi), torch.get_num_threads()
        ctx.passes = (float(scale), float(zero_point), x.numel() // channels, channels, *code_range, threads)
        ctx.window = window
        quantized = torch.empty_like(x)
        loops.library().divided_fake_quantize(*at(x, phi), *ctx.passes, quantized.data_ptr())
        narrow = weight = None
        if side_in is not None:
            sizes, shape = _geometry(x, len(side_in), window)
            weight, narrow = _channels_last(side_in, channels, window), x.new_empty(shape)
            loops.library().side_narrow(*at(x, weight), sizes, threads, narrow.data_ptr())
        ctx.save_for_backward(x, phi, scale, unit, weight)
        return quantized, narrow

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, grad_narrow):
        x, phi, scale, unit, weight = ctx.saved_tensors
        *_, qmin, qmax, threads = ctx.passes
        gradient = loops.laid_out_like(x, gradient)
        grad_x, grad_phi, grad_range = torch.empty_like(x), torch.empty_like(phi), phi.new_empty(2)
        found = at(grad_x, grad_phi, grad_range)
        loops.library().divided_fake_quantize_gradients(*at(gradient, x, phi), *ctx.passes, *found)
        grad_side = None
        if weight is not None:
            sizes, _ = _geometry(x, len(weight), ctx.window)
            changes, given = torch.empty_like(weight), grad_narrow.contiguous()
            loops.library().side_narrow_gradients(*at(given, x, weight), sizes, threads, *at(grad_x, changes))
            grad_side = changes.movedim(-1, 1).reshape(len(weight), -1)
        bounds = gradients_of_bounds(*grad_range, scale, unit, qmax - qmin)
        return grad_x, grad_phi, *bounds, None, grad_side, None, None, None


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


def _channels_last(side_in: torch.Tensor, channels: int, window: Window | None) -> torch.Tensor:
    """L2 as (r, k, k, c_in)."""
    size = (1, 1) if window is None else window[0]
    return side_in.view(len(side_in), channels, *size).movedim(1, -1).contiguous()
