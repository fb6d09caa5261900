"""Operators of the integer runtime that torch.compile takes as they are, between what it fuses itself.

oneDNN's packed weights cannot be a compiled graph's inputs, so an operator gets the number of its layer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F

_numbers = itertools.count()
_layers: WeakValueDictionary[int, IntegerProduct] = WeakValueDictionary()


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: kernel, stride, padding, dilation, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, size: int, axis: int) -> int:
        """Length of the output along an axis (0 vertical, 1 horizontal) whose input has `size` positions."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def inside(self, size: int, axis: int) -> torch.Tensor:
        """1 where a kernel tap lies inside the image, along one axis: (outputs, taps), float32."""
        first = torch.arange(self.outputs(size, axis)) * self.stride[axis] - self.padding[axis]
        position = first[:, None] + self.dilation[axis] * torch.arange(self.kernel[axis])
        return ((position >= 0) & (position < size)).float()

    def under_tap(self, padded: torch.Tensor, tap: int, axis: int, outputs: int) -> torch.Tensor:
        """What of a padded image (..., H, W) lies under one tap of every output, along one axis."""
        first, stride = tap * self.dilation[axis], self.stride[axis]
        where = slice(first, first + stride * (outputs - 1) + 1, stride)
        return padded[..., where, :] if axis == 0 else padded[..., where]


class IntegerProduct:
    """What a quantized layer does with its codes, by oneDNN; taps of a kernel outside the image do not count.

    Args:
        codes: of the weight, int8, (c_out, c_in) or (c_out, c_in, k, k).
        scale: of the integer product, (c_out,).
        sum_scale: of the sum of the input's codes under the kernel, (c_out,).
        per_tap: what each tap adds to the output, (c_out,) or (c_out, k, k).
        bias: (c_out,) or None.
        side_out: L1, (c_out, r), or None.
        geometry: None for a linear layer.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        sum_scale: torch.Tensor,
        per_tap: torch.Tensor,
        bias: torch.Tensor | None,
        side_out: torch.Tensor | None,
        geometry: Geometry | None,
    ) -> None:
        self.geometry, self.channels, self.per_tap, self.scale = geometry, len(codes), per_tap.float(), scale.float()
        constant = (per_tap if geometry is None else per_tap.sum((1, 2))).double()
        self.constant = (constant if bias is None else constant + bias.double()).float()
        self.no_zero_point = torch.zeros(self.channels, dtype=torch.int64)
        rows = [sum_scale.float()[None]] + ([] if side_out is None else [side_out.t()])
        self.spread = torch.cat(rows).contiguous()
        if geometry is None:
            self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        else:
            self.shape = [list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation)]
            self.packed = torch.ops.onednn.qconv_prepack(codes, self.scale, 1.0, 0, *self.shape, 1, None)
        self.number = next(_numbers)
        _layers[self.number] = self

    def __call__(self, codes: torch.Tensor, sums: torch.Tensor, planes: torch.Tensor | None) -> torch.Tensor:
        """The layer's output.

        Args:
            codes: of the input, uint8, (..., c_in) or (N, c_in, H, W).
            sums: of the codes over the channels, float32, (...) or (N, H, W).
            planes: L2 of the input, float32: (..., r), or for every tap of the kernel (taps, r, N, H, W).
        """
        y = self._multiply(codes, self.scale, self.constant)
        if self.geometry is None:
            maps = sums[..., None] if planes is None else torch.cat([sums[..., None], planes], -1)
            y.view(-1, self.channels).addmm_(maps.flatten(0, -2), self.spread)
            return y
        maps = self._window_sums(sums)[None]
        if planes is not None:
            maps = torch.cat([maps, self._gathered(planes)])
        y.permute(0, 2, 3, 1).view(-1, self.channels).addmm_(maps.flatten(1).t(), self.spread)
        return self._without_outside(y, *codes.shape[-2:])

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """The bare integer sums, as float32."""
        return self._multiply(codes, torch.ones_like(self.scale), None)

    def _multiply(self, codes: torch.Tensor, scale: torch.Tensor, constant: torch.Tensor | None) -> torch.Tensor:
        rest = (1.0, 0, torch.float32, "none", [], "")
        quantized = (codes, 1.0, 0, self.packed, scale, self.no_zero_point, constant)
        if self.geometry is None:
            return torch.ops.onednn.qlinear_pointwise(*quantized, *rest)
        return torch.ops.onednn.qconv2d_pointwise(*quantized, *self.shape, 1, *rest)

    def _without_outside(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`constant` counts every tap; take back those that hang over the border."""
        rows, columns = self.geometry.inside(height, 0), self.geometry.inside(width, 1)
        (top, bottom), (left, right) = _uncut(rows), _uncut(columns)
        everything, between = slice(None), slice(top, bottom)
        strips = [(slice(0, top), everything), (slice(bottom, None), everything)]
        strips += [(between, slice(0, left)), (between, slice(right, None))]
        for row, column in strips:
            outside = 1 - rows[row, None, :, None] * columns[None, column, None, :]
            if outside.numel():
                y[..., row, column] -= torch.einsum("hwkl,okl->ohw", outside, self.per_tap)
        return y

    def _window_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums under the kernel, zeros outside: (N, H, W) -> (N, H', W')."""
        total = self._padded(values)
        for axis in (0, 1):
            outputs = self.geometry.outputs(values.shape[1 + axis], axis)
            total = sum(self.geometry.under_tap(total, tap, axis, outputs) for tap in range(self.geometry.kernel[axis]))
        return total

    def _gathered(self, planes: torch.Tensor) -> torch.Tensor:
        """Each tap's own plane added up where that tap lies, zeros outside: (taps, r, N, H, W) -> (r, N, H', W')."""
        height, width = (self.geometry.outputs(planes.shape[3 + axis], axis) for axis in (0, 1))
        total = planes.new_zeros(*planes.shape[1:3], height, width)
        taps = itertools.product(*map(range, self.geometry.kernel))
        for plane, (row, column) in zip(self._padded(planes), taps, strict=True):
            total += self.geometry.under_tap(self.geometry.under_tap(plane, row, 0, height), column, 1, width)
        return total

    def _padded(self, values: torch.Tensor) -> torch.Tensor:
        (vertical, horizontal) = self.geometry.padding
        return F.pad(values, [horizontal] * 2 + [vertical] * 2) if vertical or horizontal else values


def _uncut(inside: torch.Tensor) -> tuple[int, int]:
    """First and end of the outputs with all taps inside."""
    whole = inside.all(1).nonzero().flatten().tolist()
    return (whole[0], whole[-1] + 1) if whole else (len(inside), len(inside))


@torch.library.custom_op("qartsr::integer_layer", mutates_args=())
def integer_layer(codes: torch.Tensor, sums: torch.Tensor, planes: torch.Tensor | None, number: int) -> torch.Tensor:
    """The IntegerProduct with this number, called."""
    return _layers[number](codes, sums, planes)


@integer_layer.register_fake
def _(codes: torch.Tensor, sums: torch.Tensor, planes: torch.Tensor | None, number: int) -> torch.Tensor:
    layer = _layers[number]
    if layer.geometry is None:
        return codes.new_empty(*codes.shape[:-1], layer.channels, dtype=torch.float32)
    size = [layer.geometry.outputs(codes.shape[2 + axis], axis) for axis in (0, 1)]
    shape = (len(codes), layer.channels, *size)
    return torch.empty(shape, device=codes.device, memory_format=torch.channels_last)
