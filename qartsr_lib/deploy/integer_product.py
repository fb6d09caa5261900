"""The integer product of one layer, by oneDNN."""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.deploy.geometry import Geometry

Strips = list[tuple[slice, slice, torch.Tensor]]


class IntegerProduct(nn.Module):
    """Codes -> scale * (sum of c_w c_a) + constant.

    Args:
        codes: of the weight, int8, (c_out, c_in) or (c_out, c_in, k, k).
        scale: (c_out,).
        per_tap: what each kernel tap inside the image adds to the output, (c_out,) or (c_out, k, k).
        bias: (c_out,) or None.
        geometry: None for a linear layer.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        per_tap: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry | None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        constant = per_tap.double() if geometry is None else per_tap.double().sum((1, 2))
        constant = constant if bias is None else constant + bias.double()
        if geometry is None:
            packed = torch.ops.onednn.qlinear_prepack(codes, None)
        else:
            self.shape = [list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation)]
            packed = torch.ops.onednn.qconv_prepack(codes, scale.float(), 1.0, 0, *self.shape, 1, None)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale.float())
        self.register_buffer("per_tap", per_tap.double())
        self.register_buffer("constant", constant.float())
        self.register_buffer("no_zero_point", torch.zeros(len(codes), dtype=torch.int64))
        self.borders: dict[tuple[int, int], Strips] = {}

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 (..., c_in) -> float32 (..., c_out), or (N, c_in, H, W) -> (N, c_out, H', W')."""
        y = self._multiply(codes, self.scale, self.constant)
        if self.geometry is not None:  # `constant` counts every tap; those outside are taken back
            size = tuple(codes.shape[-2:])
            if size not in self.borders:
                self.borders = {size: self._outside(*size)}
            for rows, columns, outside in self.borders[size]:
                y[..., rows, columns] -= outside
        return y

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """The bare integer sums, as float32."""
        return self._multiply(codes, torch.ones_like(self.scale), None)

    def _multiply(self, codes: torch.Tensor, scale: torch.Tensor, constant: torch.Tensor | None) -> torch.Tensor:
        rest = (1.0, 0, torch.float32, "none", [], "")
        quantized = (codes, 1.0, 0, self.packed, scale, self.no_zero_point, constant)
        if self.geometry is None:
            return torch.ops.onednn.qlinear_pointwise(*quantized, *rest)
        return torch.ops.onednn.qconv2d_pointwise(*quantized, *self.shape, 1, *rest)

    def _outside(self, height: int, width: int) -> Strips:
        """Strips of the output along the borders and what the taps outside the image would add there."""
        rows, columns = self.geometry.inside(height, 0), self.geometry.inside(width, 1)
        (top, bottom), (left, right) = _uncut(rows), _uncut(columns)
        everything, between = slice(None), slice(top, bottom)
        strips = [(slice(0, top), everything), (slice(bottom, None), everything)]
        strips += [(between, slice(0, left)), (between, slice(right, None))]
        found = []
        for row, column in strips:
            outside = 1 - rows[row, None, :, None] * columns[None, column, None, :]
            if outside.numel():
                found.append((row, column, torch.einsum("hwkl,okl->ohw", outside.double(), self.per_tap).float()))
        return found


def _uncut(inside: torch.Tensor) -> tuple[int, int]:
    """First and end of the outputs with all taps inside."""
    whole = inside.all(1).nonzero().flatten().tolist()
    return (whole[0], whole[-1] + 1) if whole else (len(inside), len(inside))
