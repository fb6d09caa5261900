"""Where a convolution's kernel lies, and sums over its taps that do without a convolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from qartsr_lib.base.native import at
from qartsr_lib.deploy.loops import library


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: kernel, stride, padding, dilation, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, kernel: Sequence[int], options: Mapping[str, tuple[int, int]] | None) -> Geometry | None:
        """From the sizes of a kernel and a Conv2d's attributes by name; None for a linear layer, which has none."""
        if options is None:
            return None
        return cls(tuple(kernel), *(options[name] for name in ("stride", "padding", "dilation")))

    def outputs(self, size: int, axis: int) -> int:
        """Length of the output along an axis (0 vertical, 1 horizontal) whose input has `size` positions."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def axis(self, axis: int, size: int) -> torch.Tensor:
        """Taps, stride, padding, dilation, inputs and outputs along one axis, int64, as the loops take them."""
        return _axis(self, axis, size)

    def inside(self, size: int, axis: int) -> torch.Tensor:
        """1 where a kernel tap lies inside the image, along one axis: (outputs, taps), float32."""
        first = torch.arange(self.outputs(size, axis)) * self.stride[axis] - self.padding[axis]
        position = first[:, None] + self.dilation[axis] * torch.arange(self.kernel[axis])
        return ((position >= 0) & (position < size)).float()

    def window_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums under the kernel, zeros outside: (N, H, W) -> (N, H', W')."""
        for axis in (0, 1):
            padded, taps = self._padded(values, axis), range(self.kernel[axis])
            values = sum(self._under_tap(padded, tap, axis, values.shape[1 + axis]) for tap in taps)
        return values

    def gathered(self, planes: torch.Tensor) -> torch.Tensor:
        """Each tap's own plane added up where that tap lies, zeros outside: (taps, ..., H, W) -> (..., H', W')."""
        height, width = planes.shape[-2:]
        padded = self._padded(self._padded(planes, 0), 1)
        taps = itertools.product(*map(range, self.kernel))
        return sum(
            self._under_tap(self._under_tap(plane, row, 0, height), column, 1, width)
            for plane, (row, column) in zip(padded, taps, strict=True)
        )

    def _padded(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        ends = [self.padding[axis]] * 2
        return F.pad(values, [0, 0, *ends] if axis == 0 else ends) if ends[0] else values

    def _under_tap(self, padded: torch.Tensor, tap: int, axis: int, size: int) -> torch.Tensor:
        first, stride = tap * self.dilation[axis], self.stride[axis]
        where = slice(first, first + stride * (self.outputs(size, axis) - 1) + 1, stride)
        return padded[..., where, :] if axis == 0 else padded[..., where]


@lru_cache(maxsize=1024)
def _axis(geometry: Geometry, axis: int, size: int) -> torch.Tensor:
    names = ("kernel", "stride", "padding", "dilation")
    return torch.tensor([*(getattr(geometry, name)[axis] for name in names), size, geometry.outputs(size, axis)])


#: A linear layer, its tokens in one row or several.
POINTWISE = Geometry((1, 1), (1, 1), (0, 0), (1, 1))


def rows_by_tap(side_in: torch.Tensor, geometry: Geometry | None) -> torch.Tensor:
    """L2 (r, c_in k k) with a row for each tap and rank, (k k r, c_in); for a linear layer as it is."""
    if geometry is None:
        return side_in
    rank, taps = len(side_in), math.prod(geometry.kernel)
    return side_in.view(rank, -1, taps).permute(2, 0, 1).reshape(taps * rank, -1).contiguous()


def side_products(half: torch.Tensor, rows: torch.Tensor, geometry: Geometry | None) -> torch.Tensor:
    """L2 x in bfloat16, for a convolution tap by tap: one with so few outputs is slow, one product for all taps is not.

    Args:
        half: x, bfloat16, (..., c_in), for a convolution (N, H, W, c_in).
        rows: L2 from `rows_by_tap`, bfloat16.

    Returns:
        bfloat16, (..., r), for a convolution (taps, r, N, H, W), each tap's numbers side by side.
    """
    planes = _planes(half.reshape(-1, half.shape[-1]), rows)
    if geometry is None:
        return planes.t().contiguous().view(*half.shape[:-1], -1)
    return planes.view(math.prod(geometry.kernel), -1, *half.shape[:-1])


def _planes(half: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """rows half^T in bfloat16; on a CPU by a loop with the same bits on every processor (PyTorch's differ, and are slow
    without AVX-512)."""
    loops = None if half.is_cuda else library()
    if loops is None:
        return torch.mm(rows, half.t())
    half, wide = half.contiguous(), rows.float().contiguous()
    planes = half.new_empty(len(rows), len(half))
    loops.side(*at(half, wide), len(rows), *half.shape, planes.data_ptr())
    return planes


def side_output(products: torch.Tensor, side_out: torch.Tensor, geometry: Geometry | None) -> torch.Tensor:
    """L1 L2 x from `side_products` and L1 (c_out, r), with the sums over the taps in float32: (..., c_out)."""
    products = products.to(side_out.dtype)
    narrow = products if geometry is None else geometry.gathered(products).permute(1, 2, 3, 0)
    return sum(narrow[..., k, None] * column for k, column in enumerate(side_out.unbind(1)))
