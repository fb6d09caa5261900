"""The integer product of one layer, by oneDNN, and the constants that go with it.

Processors without VNNI or AMX add two products of 8-bit codes in 16 bits, which saturate: 2 x 255 x 127 > 32,767. Where
a product tried here is wrong, weights of 8 bits become the sum of two halves of 7 bits, multiplied side by side.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.geometry import POINTWISE, Geometry

SIZES = 8
"""Of images whose border constants are kept."""
WHOLE, HALVED = "whole", "halved"
#: (c_out, c_in, k) of the products that `weights_of_8_bits` tries, on images of both sizes.
TRIED, TRIED_SIDES = ((64, 64, 3), (32, 3, 3), (80, 64, 1), (5, 7, 3), (48, 160, 0)), (5, 32)
SAFE = 64
"""Two products of 255 and weights up to it add up to less than 2^15."""


class IntegerProduct(nn.Module):
    """Codes -> scale * (sum of c_w c_a).

    Args:
        codes: of the weight, int8, (c_out, c_in) or (c_out, c_in, k, k).
        scale: (c_out,).
        per_tap: what each kernel tap inside the image adds to the output, (c_out,) or (c_out, k, k).
        bias: (c_out,) or None.
        geometry: None for a linear layer.
        weights: WHOLE, or HALVED for codes that 16 bits are too few for; None for what is exact here.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        per_tap: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry | None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        large = int(codes.max()) > SAFE or int(codes.min()) < -SAFE
        self.halved = large and (weights or weights_of_8_bits()) == HALVED
        if self.halved:
            codes = torch.cat([lower := codes >> 1, codes - lower], 1)  # of twice as many channels
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
        if self.halved:
            codes = torch.cat([codes, codes], -1 if self.geometry is None else 1)
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


@lru_cache(maxsize=1)
def weights_of_8_bits() -> str:
    """WHOLE where this process multiplies codes of 8 bits exactly, else HALVED: found by multiplying the largest.

    An environment variable can forbid oneDNN the instructions that the processor has, so no flag is asked.

    Raises:
        QartsrError: halves give wrong sums, too.
    """
    for weights in (WHOLE, HALVED):
        if all(_is_exact(weights, *shape, side) for shape in TRIED for side in TRIED_SIDES):
            return weights
    raise QartsrError("--runtime int8: integer products are not exact on this processor; use --runtime simulate")


def _is_exact(weights: str, c_out: int, c_in: int, kernel: int, side: int) -> bool:
    """Against float64, for weights of -128 and 127 and activations of 255 and 0; a kernel of 0 is a linear layer."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (c_out, c_in, *[kernel] * 2 * bool(kernel)), generator=generator) * 255 - 128
    x = (torch.rand(1, side, side, c_in, generator=generator) < 0.9).to(torch.uint8) * 255
    geometry = Geometry((kernel,) * 2, (1, 1), (kernel // 2,) * 2, (1, 1)) if kernel else None
    per_tap = torch.zeros(c_out, *codes.shape[2:])
    product = IntegerProduct(codes.to(torch.int8), torch.ones(c_out), per_tap, None, geometry, weights)
    if geometry is None:
        return torch.equal(product.sums(x).double(), F.linear(x.double(), codes.double()))
    x = x.permute(0, 3, 1, 2)
    return torch.equal(product.sums(x).double(), F.conv2d(x.double(), codes.double(), padding=kernel // 2))
