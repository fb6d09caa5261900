"""Where a convolution's kernel lies, and low-rank branches L1 L2 x in 16 bits, tap by tap."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.native import at
from qartsr_lib.deploy.loops import library


@dataclass(frozen=True)
class Geometry:
    """Of a convolution, each (vertical, horizontal); a linear layer is one of 1 x 1 whose pixels are its tokens."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Linear | nn.Conv2d) -> Geometry:
        """A layer's own."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return cls(*(getattr(layer, name) for name in names)) if isinstance(layer, nn.Conv2d) else cls()

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    def outputs(self, size: int, axis: int) -> int:
        """Length of the output along an axis (0 vertical, 1 horizontal) whose input has `size` positions."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    @lru_cache(maxsize=1024)  # noqa: B019 - of few geometries, which live as long as the process
    def axis(self, axis: int, size: int) -> torch.Tensor:
        """Taps, stride, padding, dilation, inputs and outputs along one axis, int64, as the loops take them."""
        own = (pair[axis] for pair in (self.kernel, self.stride, self.padding, self.dilation))
        return torch.tensor([*own, size, self.outputs(size, axis)])

    def inside(self, size: int, axis: int) -> torch.Tensor:
        """1 where a kernel tap lies inside the image, along one axis: (outputs, taps), float32."""
        first = torch.arange(self.outputs(size, axis)) * self.stride[axis] - self.padding[axis]
        position = first[:, None] + self.dilation[axis] * torch.arange(self.kernel[axis])
        return ((position >= 0) & (position < size)).float()


def rows_by_tap(side_in: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """L2 (r, c_in k k) with a row for each tap and rank, (k k r, c_in)."""
    by_tap = side_in.view(len(side_in), -1, geometry.taps).permute(2, 0, 1)
    return by_tap.reshape(geometry.taps * len(side_in), -1).contiguous()


def side_products(half: torch.Tensor, rows: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """L2 x, tap by tap: a convolution with so few outputs is slow, one product for all taps is not.

    x (N, H, W, c_in) and L2 from `rows_by_tap`, both bfloat16 -> bfloat16 (taps, r, N, H, W). On a CPU by a loop with
    the same bits on every processor (PyTorch's differ, and are slow without AVX-512).
    """
    pixels = half.reshape(-1, half.shape[-1])
    loops = None if half.is_cuda else library()
    if loops is None:
        planes = torch.mm(rows, pixels.t())
    else:
        pixels, planes = pixels.contiguous(), half.new_empty(len(rows), len(pixels))
        wide = rows.float().contiguous()
        loops.side(*at(pixels, wide), len(rows), *pixels.shape, planes.data_ptr())
    return planes.view(geometry.taps, -1, *half.shape[:-1])


def side_output(products: torch.Tensor, side_out: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """L1 L2 x from `side_products` and L1 (c_out, r), with the sums over the taps in float32: (N, H', W', c_out)."""
    sizes, (vertical, horizontal) = products.shape[-2:], geometry.padding
    planes = products.to(side_out.dtype)
    if vertical or horizontal:
        planes = F.pad(planes, [horizontal, horizontal, vertical, vertical])

    def under(tap: int, axis: int) -> slice:
        first, stride = tap * geometry.dilation[axis], geometry.stride[axis]
        return slice(first, first + stride * (geometry.outputs(sizes[axis], axis) - 1) + 1, stride)

    taps = zip(planes, itertools.product(*map(range, geometry.kernel)), strict=True)
    narrow = sum(plane[..., under(row, 0), under(column, 1)] for plane, (row, column) in taps).permute(1, 2, 3, 0)
    return sum(narrow[..., k, None] * column for k, column in enumerate(side_out.unbind(1)))
