"""Integer execution on a CPU: convolutions and linear layers as int8 products with int32 sums (oneDNN).

The algebra is deploy.integer_algebra's: an integer product, sums of codes that are one channel, and a small
table for what the border cuts off.

Codes of up to 8 bits are held in 8: activations unsigned, weights shifted to signed. Sums are exact
on CPUs with VNNI or AMX; older ones (AVX2 alone) may saturate at 8 bits, not at 6 and fewer.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from qartsr_lib.deploy.around_product import encode, finish_
from qartsr_lib.deploy.geometry import Geometry, rows_by_tap, side_products
from qartsr_lib.deploy.integer_algebra import Algebra, is_integer
from qartsr_lib.deploy.integer_product import IntegerProduct
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.replace import replace_layers


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
        for name in ("phi", "offset", "side_out"):
            self.register_buffer(name, getattr(layer, name))
        for name in ("input_scale", "input_zero_point"):
            self.register_buffer(name, getattr(layer, name).reshape(()))
        self.register_buffer("largest", torch.tensor(float(layer.input_range[1])))
        rows = None if layer.side_in is None else rows_by_tap(layer.side_in, geometry).bfloat16()
        self.register_buffer("side_in", rows)
        self.half = "none" if rows is None else "scaled" if layer.form.side_after_scaling else "input"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x float32 as for the float layer."""
        geometry = self.product.geometry
        last = x if geometry is None else x.permute(0, 2, 3, 1)
        quantizer = (self.phi, self.offset, self.input_zero_point, self.input_scale, self.largest)
        codes, sums, half = encode(last, *quantizer, self.half)
        products = None if half is None else side_products(half, self.side_in, geometry)
        del half  # memory: large images have large intermediate results
        y = self.product(codes if geometry is None else codes.permute(0, 3, 1, 2))
        del codes
        y_last = y if geometry is None else y.permute(0, 2, 3, 1)
        finish_(y_last, sums, self.sum_scale, products, self.side_out, geometry)
        return y
