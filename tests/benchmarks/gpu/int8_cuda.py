"""Integer execution on an NVIDIA GPU: convolutions and linear layers as int8 products with int32 sums (Triton).

The algebra is deploy.int8's, as on a CPU, with signed codes for activations too: Triton has
no product of unsigned with signed. Three steps a layer: codes with their sums; L2 x in bfloat16; and
one kernel for the product and all that is added to it. Between layers numbers are bfloat16,
channels last, and GroupNorm with its SiLU is one module (fused_norms).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.geometry import Geometry, rows_by_tap, side_products
from qartsr_lib.deploy.int8 import integer_constants
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.quant.layers import replace_layers
from tests.benchmarks.gpu.fused_norms import fuse_norms_

CHANNEL_MULTIPLE = 32
"""Input channels are filled up with zeros to a multiple: the depth of one tensor-core product."""


@dataclass(frozen=True)
class Kernels:
    """Of a layer encode.encode, product.multiply and its Border; group_norm.group_norm (all in triton_kernels)."""

    encode: Callable
    multiply: Callable
    border: type
    normalize: Callable


def triton_kernels() -> Kernels:
    """The GPU's kernels.

    Raises:
        QartsrError: no Triton here.
    """
    try:
        from tests.benchmarks.gpu.triton_kernels.encode import encode
        from tests.benchmarks.gpu.triton_kernels.group_norm import group_norm
        from tests.benchmarks.gpu.triton_kernels.product import Border, multiply
    except ImportError as error:
        raise QartsrError(f"--runtime int8: needs Triton on a GPU ({error}); use --runtime simulate") from error
    return Kernels(encode, multiply, Border, group_norm)


def int8_cuda_form(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A copy of a packed model on a GPU whose quantized layers compute with integers; same interface.

    Args:
        model: from load_packed, or inference_form with half=True, moved to the GPU.
        dtype: of everything between the quantized layers, bfloat16 or float32 (for comparisons).

    Raises:
        QartsrError: not one layer can, see InferenceLayer.is_integer, or no Triton here.
    """
    kernels = triton_kernels()

    def chosen(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, InferenceLayer)

    if not any(chosen("", layer) and layer.is_integer for layer in model.modules()):
        raise QartsrError("--runtime int8: no layer of this model is an integer product; use --runtime simulate")

    def convert(name: str, _: nn.Module) -> nn.Module:
        layer = model.get_submodule(name)  # the copy's numbers are rounded to `dtype` already
        return CudaIntegerLayer(layer, kernels, dtype) if layer.is_integer else InFloat32(copy.deepcopy(layer))

    converted = copy.deepcopy(model).to(dtype)
    replace_layers(converted, chosen, convert)
    fuse_norms_(converted, kernels.normalize)
    converted.register_forward_pre_hook(lambda _, inputs: tuple(image.to(dtype) for image in inputs))
    return converted.eval()


class InFloat32(nn.Module):
    """A layer that no integers can compute, in float32 between neighbours of another precision."""

    def __init__(self, layer: InferenceLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, in the precision of x."""
        return self.layer(x.float()).to(x.dtype)


class CudaIntegerLayer(nn.Module):
    """An InferenceLayer in integers; with float32 in and out its outputs are equal to 1e-5 of their size.

    Args:
        layer: one that `is_integer`; not changed.
        kernels: how it computes.
        dtype: of the output, bfloat16 or float32.
    """

    def __init__(self, layer: InferenceLayer, kernels: Kernels, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.kernels, self.dtype = kernels, dtype
        self.geometry = layer.geometry if layer.is_convolution else None
        self.largest = layer.form.input.code_range[1]
        self.lowest = 0 if self.largest < 128 else -128
        codes, scale, sum_scale, per_tap = integer_constants(layer)
        by_tap = codes.flatten(2).movedim(1, 2) if self.geometry else codes[:, None]
        # The zero-point moves along where codes are counted from another number.
        per_tap = per_tap - self.lowest * layer.input_scale.double() * layer.weight().double().sum(1)
        c_out, taps, c_in = by_tap.shape
        self.padded = -(-c_in // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
        self.register_buffer("codes", by_tap.new_zeros(c_out, taps, self.padded))
        self.codes[..., :c_in] = by_tap
        self.register_buffer("scale", scale.float())
        self.register_buffer("sum_scale", sum_scale.float())
        self.register_buffer("per_tap", per_tap.cpu())  # for tables of sizes to come
        self.register_buffer("bias", layer.bias)
        for name in ("phi", "offset"):
            self.register_buffer(name, getattr(layer, name))
        side_out = layer.side_out
        self.register_buffer("side_out", None if side_out is None else side_out.contiguous())
        for name in ("input_scale", "input_zero_point"):
            self.register_buffer(name, getattr(layer, name).reshape(()).clone())
        rows = None if layer.side_in is None else rows_by_tap(layer.side_in, layer.geometry).bfloat16()
        self.register_buffer("side_in", rows)
        self.after_scaling = layer.form.side_after_scaling
        self.borders: dict[tuple[int, int], object] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output in `dtype`; x float32 or bfloat16, of a convolution in any memory format."""
        geometry = self.geometry
        # Two dimensions of positions become one without a copy, channels last or first.
        last = x.reshape(1, -1, x.shape[-1]) if geometry is None else x.permute(0, 2, 3, 1).flatten(1, 2)
        size = (1, last.shape[1]) if geometry is None else tuple(x.shape[-2:])
        as_it_is = x.dtype == torch.bfloat16 and last.is_contiguous() and not self.after_scaling
        half = 0 if self.side_in is None or as_it_is else 2 if self.after_scaling else 1
        quantizer = (self.phi, self.offset, self.input_zero_point, self.input_scale)
        codes, sums, seen = self.kernels.encode(last, *quantizer, self.largest, self.lowest, self.padded, half)
        products = None
        if self.side_in is not None:
            seen = last if as_it_is else seen
            seen = seen if geometry is None else seen.unflatten(1, size)
            products = side_products(seen if geometry else seen[None], self.side_in, geometry or Geometry())
            products = products if geometry else products[0, :, 0].movedim(0, -1).contiguous()
        y = self.kernels.multiply(
            codes.unflatten(1, size),
            sums.unflatten(1, size),
            self.codes,
            self.scale,
            self.sum_scale,
            self.border(*size),
            products,
            self.side_out,
            geometry,
            self.dtype,
        )
        return y.view(*x.shape[:-1], -1) if geometry is None else y.permute(0, 3, 1, 2)

    def border(self, height: int, width: int) -> object:
        """Constants of outputs by what the border cuts off, for an input of this size; kept per size."""
        key = (height, width) if self.geometry else (1, 1)
        if key not in self.borders:
            self.borders[key] = self._border(height, width)
        return self.borders[key]

    def _border(self, height: int, width: int) -> object:
        device = self.scale.device
        bias = 0 if self.bias is None else self.bias.double().cpu()
        per_tap = self.per_tap.cpu()
        if self.geometry is None:
            anywhere = torch.zeros(1, dtype=torch.int32, device=device)
            return self.kernels.border((per_tap + bias).float().view(1, 1, -1).to(device), anywhere, anywhere)
        (rows, row_class), (columns, column_class) = (
            torch.unique(self.geometry.inside(size, axis), dim=0, return_inverse=True)
            for axis, size in ((0, height), (1, width))
        )
        table = torch.einsum("ak,bl,okl->abo", rows.double(), columns.double(), per_tap) + bias
        parts = (table.float(), row_class.int(), column_class.int())
        return self.kernels.border(*(part.contiguous().to(device) for part in parts))
