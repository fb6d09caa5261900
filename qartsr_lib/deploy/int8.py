"""Integer execution on a CPU: convolutions and linear layers as int8 products with int32 sums (oneDNN).

The algebra is deploy.integer_algebra's: an integer product, sums of codes that are one channel, and a small
table for what the border cuts off.

Codes of up to 8 bits are held in 8: activations unsigned, weights shifted to signed. Sums are exact on every
processor (`integer_product`).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.around_product import Finish, Norm, Quantizer, encode, finish_, remember
from qartsr_lib.deploy.geometry import POINTWISE, Geometry, rows_by_tap, side_products
from qartsr_lib.deploy.integer_algebra import Algebra, is_integer
from qartsr_lib.deploy.integer_product import IntegerProduct
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.quant.layers import replace_layers

ROWS = 64


def int8_form(model: nn.Module) -> nn.Module:
    """A copy of a packed model whose quantized layers compute with integers; same interface.

    Args:
        model: from load_packed, or inference_form with half=True.

    Raises:
        QartsrError: not one layer can (scales per group or per token have no plain integer product),
            or this PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise QartsrError("--runtime int8: this PyTorch was built without oneDNN; use --runtime simulate")
    converted = copy.deepcopy(model)

    def chosen(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, InferenceLayer) and is_integer(layer)

    if not replace_layers(converted, chosen, lambda _, layer: IntegerLayer(layer)):
        raise QartsrError("--runtime int8: no layer of this model is an integer product; use --runtime simulate")
    return converted.eval()


class IntegerLayer(nn.Module):
    """An InferenceLayer in integers; its outputs are equal to 1e-5 of their size.

    Args:
        layer: one that `is_integer`; not changed.
    """

    def __init__(self, layer: InferenceLayer) -> None:
        super().__init__()
        algebra, geometry = Algebra.of(layer), Geometry.of(layer.codes.shape[2:], layer.geometry)
        self.product = IntegerProduct(algebra.codes, algebra.scale, algebra.per_tap, layer.bias, geometry)
        self.register_buffer("sum_scale", algebra.sum_scale.float())
        rows = None if layer.side_in is None else rows_by_tap(layer.side_in, geometry).bfloat16()
        self.register_buffer("side_in", rows)
        self.register_buffer("side_out", None if rows is None else layer.side_out.t().contiguous())
        inputs = layer.codes.shape[1]
        self.quantizer = Quantizer(
            offset=torch.zeros(inputs) if layer.offset is None else layer.offset,
            phi=torch.ones(inputs) if layer.phi is None else layer.phi,
            zero_point=layer.input_zero_point.item(),
            scale=layer.input_scale.item(),
            largest=float(layer.input_range[1]),
            half="none" if rows is None else "scaled" if layer.form.side_after_scaling else "input",
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x float32 as for the float layer."""
        return remember(*self.run(x, moments=self.product.geometry is not None))

    def run(
        self,
        x: torch.Tensor,
        norm: Norm | None = None,
        added: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        moments: bool = False,
        size: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output and, if asked, its moments; a convolution takes in what lies around it.

        Args:
            x: as for the float layer.
            norm: applied to x before.
            added: (N, c_out), to the output.
            residual: like the output, to the output.
            moments: of the output, for the next GroupNorm (`moments_of`).
            size: to which the input is enlarged by nearest neighbours.
        """
        geometry = self.product.geometry
        last = x if geometry is None else x.permute(0, 2, 3, 1)
        codes, sums, half = encode(last, self.quantizer, norm)
        products = None if half is None else side_products(half, self.side_in, geometry)
        del half  # memory: large images have large intermediate results
        if size is not None:  # in the layout of (N, C, H, W)
            codes = F.interpolate(codes.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
            sums = F.interpolate(sums[:, None], size)[:, 0]
            if products is not None:
                products = F.interpolate(products.flatten(0, 1), size).view(*products.shape[:3], *size)
        y = self.product(codes if geometry is None else codes.permute(0, 3, 1, 2))
        del codes
        if geometry is None:
            self._finish_tokens(y, sums, products)
            return y, None
        shape = Finish(geometry, self.sum_scale, self.side_out, *self.product.constants(*sums.shape[1:]))
        beside = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
        return y, finish_(y.permute(0, 2, 3, 1), sums, products, shape, added, beside, moments)

    def _finish_tokens(self, y: torch.Tensor, sums: torch.Tensor, products: torch.Tensor | None) -> None:
        """A linear layer's: its tokens become pixels, in rows for the threads."""
        rows = math.gcd(sums.numel(), ROWS)
        if products is not None:
            products = products.reshape(-1, products.shape[-1]).t().contiguous()
        constants, *_ = self.product.constants(1, 1)
        kinds = (torch.zeros(size, dtype=torch.int32) for size in (rows, sums.numel() // rows))
        how = Finish(POINTWISE, self.sum_scale, self.side_out, constants, *kinds)
        pixels = (1, rows, sums.numel() // rows)
        planes = None if products is None else products.view(1, -1, *pixels)
        finish_(y.view(*pixels, -1), sums.view(pixels), planes, how)
