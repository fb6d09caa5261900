"""The integer product of one layer, by oneDNN, and the constants that go with it."""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.deploy.geometry import POINTWISE, Geometry

SIZES = 8
"""Of images whose border constants are kept."""


class IntegerProduct(nn.Module):
    """Codes -> scale * (sum of c_w c_a).

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
        if geometry is None:
            packed = torch.ops.onednn.qlinear_prepack(codes, None)
        else:
            self.shape = [list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation)]
            packed = torch.ops.onednn.qconv_prepack(codes, scale.float(), 1.0, 0, *self.shape, 1, None)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale.float())
        self.register_buffer("per_tap", per_tap.double().reshape(len(codes), *(geometry or POINTWISE).kernel))
        self.register_buffer("bias", torch.zeros(len(codes)) if bias is None else bias.float())
        self.register_buffer("no_zero_point", torch.zeros(len(codes), dtype=torch.int64))
        self.known: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 (..., c_in) -> float32 (..., c_out), or (N, c_in, H, W) -> (N, c_out, H', W')."""
        return self._multiply(codes, self.scale)

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """The bare integer sums, as float32."""
        return self._multiply(codes, torch.ones_like(self.scale))

    def _multiply(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        quantized = (codes, 1.0, 0, self.packed, scale, self.no_zero_point, None)
        rest = (1.0, 0, torch.float32, "none", [], "")
        if self.geometry is None:
            return torch.ops.onednn.qlinear_pointwise(*quantized, *rest)
        return torch.ops.onednn.qconv2d_pointwise(*quantized, *self.shape, 1, *rest)

    def constants(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the taps inside an image of this size add, and the bias: (row kinds, column kinds, c_out).

        With it the kind of each output row and column, int32: those with the same taps inside are of one kind.
        """
        if self.geometry is None:
            height = width = 1
        if (height, width) not in self.known:
            if len(self.known) >= SIZES:
                self.known.clear()
            geometry = self.geometry or POINTWISE
            rows, row_kinds = geometry.inside(height, 0).unique(dim=0, return_inverse=True)
            columns, column_kinds = geometry.inside(width, 1).unique(dim=0, return_inverse=True)
            table = torch.einsum("hk,wl,okl->hwo", rows.double(), columns.double(), self.per_tap) + self.bias
            self.known[height, width] = (table.float().contiguous(), row_kinds.int(), column_kinds.int())
        return self.known[height, width]
