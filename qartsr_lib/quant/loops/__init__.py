"""The passes over memory of a training step in C++, for `primitives` and `few_passes`.

A training step of a quantized network is memory-bound: written with PyTorch's operations, these passes cost as
much as its convolutions. Each function here has the bits of the function of the same name there, but for the order
of sums, and returns None where it does not apply (another device, dtype or layout, no compiler); the caller then
does it by PyTorch.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

from qartsr_lib.base import native
from qartsr_lib.base.native import FLOAT, POINTER, WHOLE, at

_SIZES = [WHOLE, WHOLE]
_CODES = [FLOAT, FLOAT, WHOLE]  # smallest and largest code, threads
ARGUMENTS = {
    "fake_quantize": [*[POINTER] * 3, *_SIZES, *_CODES, POINTER],
    "fake_quantize_gradients": [*[POINTER] * 4, *_SIZES, *_CODES, FLOAT, *[POINTER] * 3],
    "divided_fake_quantize": [POINTER, POINTER, FLOAT, FLOAT, *_SIZES, *_CODES, POINTER],
    "divided_fake_quantize_gradients": [*[POINTER] * 3, FLOAT, FLOAT, *_SIZES, *_CODES, FLOAT, *[POINTER] * 3],
    "folded": [*[POINTER] * 6, FLOAT, WHOLE, POINTER],
    "folded_gradients": [*[POINTER] * 7, FLOAT, FLOAT, WHOLE, *[POINTER] * 4],
    "side_narrow": [*[POINTER] * 3, WHOLE, POINTER],
    "side_narrow_gradients": [*[POINTER] * 4, WHOLE, *[POINTER] * 2],
    "side_spread": [POINTER, POINTER, *[WHOLE] * 4, POINTER],
    "side_spread_gradients": [*[POINTER] * 3, *[WHOLE] * 4, *[POINTER] * 2],
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where they cannot be had. No fused multiply-add, which would change bits."""
    return native.compiled(Path(__file__).parent, ARGUMENTS, "-ffp-contract=off", "-fno-trapping-math")


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> torch.Tensor | None:
    """`primitives.fake_quantize` without gradients."""
    rows = _rows(x, scale, zero_point)
    if rows is None:
        return None
    found = torch.empty_like(x)
    sizes = (rows, x.numel() // rows, qmin, qmax, torch.get_num_threads())
    library().fake_quantize(*at(x, scale, zero_point), *sizes, found.data_ptr())
    return found


def fake_quantize_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    reach: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """Gradients of `fake_quantize` with respect to x, scale and zero_point, given that of its result."""
    rows = _rows(x, scale, zero_point)
    if rows is None or not plain(gradient):
        return None
    gradient = laid_out_like(x, gradient)
    found = [None if tensor is None else torch.empty_like(tensor) for tensor in (x, scale, zero_point)]
    sizes = (rows, x.numel() // rows, qmin, qmax, torch.get_num_threads())
    library().fake_quantize_gradients(*at(gradient, x, scale, zero_point), *sizes, reach, *at(*found))
    return tuple(found)


def plain(*tensors: torch.Tensor) -> bool:
    """Whether all are float32 on the CPU, not empty and no subclass."""
    return all(
        type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.dtype is torch.float32
        and t.device.type == "cpu"
        and t.numel()
        for t in tensors
    )


def laid_out_like(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, of the shape of x, with its strides too."""
    return tensor if tensor.stride() == x.stride() else torch.empty_like(x).copy_(tensor)


def _rows(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> int | None:
    """How many stretches of x, one behind the other in memory, have a scale each; None if that is not how it is."""
    offset = scale if zero_point is None else zero_point
    alike = offset.shape == scale.shape and scale.is_contiguous() and offset.is_contiguous()
    if not (alike and plain(x, scale, offset) and library() is not None):
        return None
    return _rows_of(x.shape, x.stride(), scale.shape)


@lru_cache(maxsize=4096)
def _rows_of(shape: torch.Size, stride: tuple[int, ...], parameters: torch.Size) -> int | None:
    """`_rows` from shapes and strides: asked for the same layers again and again."""
    own = 1 + max((axis for axis, size in enumerate(parameters) if size > 1), default=-1)
    missing = len(shape) - len(parameters)  # axes of x before those of the scale
    if missing < 0 or (own and missing) or parameters[:own] != shape[:own]:
        return None
    rows = parameters.numel()
    one_behind_the_other = torch.empty(*shape[:own], shape.numel() // rows, device="meta").stride()
    leading = zip(shape[:own], stride[:own], one_behind_the_other[:own], strict=True)
    apart = all(size == 1 or found == wanted for size, found, wanted in leading)
    inner = torch.empty_strided(shape[own:], stride[own:], device="meta")
    return rows if apart and torch.ops.aten.is_non_overlapping_and_dense(inner) else None
