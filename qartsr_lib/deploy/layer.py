"""A quantized layer without anything that only training needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.deploy.geometry import Geometry, rows_by_tap, side_output, side_products
from qartsr_lib.quant.granularity import (
    PerChannel,
    PerTensor,
    broadcast_along,
    granularity_from_dict,
    granularity_to_dict,
)
from qartsr_lib.quant.layers import spread
from qartsr_lib.quant.primitives import dequantize, fake_quantize, integer_range
from qartsr_lib.quant.quantizers import DynamicQuantizer, QuantizerConfig

_FORMATS = {2: torch.contiguous_format, 4: torch.channels_last}


@dataclass(frozen=True)
class Form:
    """What an InferenceLayer is made of, apart from the sizes that its float layer tells.

    Attributes:
        weight, input: their quantizers; no input quantizer for activations in full precision.
        dynamic: the input's scale comes from its values.
        phi, offset: whether the input is scaled, and shifted before.
        side_rank: r of L1 L2; 0 for none.
        side_after_scaling: L2 sees the scaled input instead of the layer's.
        side_half: L2 and its product with the input are in bfloat16.
    """

    weight: QuantizerConfig
    input: QuantizerConfig | None
    dynamic: bool = False
    phi: bool = False
    offset: bool = False
    side_rank: int = 0
    side_after_scaling: bool = False
    side_half: bool = False

    def to_dict(self) -> dict:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self) | {name: config_to_dict(getattr(self, name)) for name in ("weight", "input")}

    @classmethod
    def from_dict(cls, described: dict) -> Form:
        """Inverse of `to_dict`; KeyError, TypeError or ValueError when `described` is not one."""
        return cls(**described | {name: config_from_dict(described[name]) for name in ("weight", "input")})


def config_to_dict(config: QuantizerConfig | None) -> dict | None:
    """JSON-ready form; `config_from_dict` reads it back."""
    return config and asdict(config) | {"granularity": granularity_to_dict(config.granularity)}


def config_from_dict(described: dict | None) -> QuantizerConfig | None:
    """Inverse of `config_to_dict`; KeyError or TypeError when `described` is not one."""
    return described and QuantizerConfig(**described | {"granularity": granularity_from_dict(described["granularity"])})


class InferenceLayer(nn.Module):
    """y = dequantized codes * Q_A((x - o) / phi) + b + L1 L2 x + W o; what `form` lacks is left out.

    A new layer has storage and no values; `inference_form` or a packed file fills its buffers.

    Args:
        layer: the float (or quantized) Linear or Conv2d in whose place it stands; tells sizes only.
        form: what it is made of.
        like: tensor whose strides the codes get; channels_last by default.

    Attributes (buffers, None where the form has no such part):
        codes: of Q_W, counted from 0, uint8, like W.
        scale, zero_point: of Q_W; input_scale, input_zero_point: of Q_A.
        bias: Q_B(B) as floats.
        phi, offset: (c_in,).
        behind: W o, (c_out,), or (c_out, 1, k, k) per kernel position, which the borders need.
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, form: Form, like: torch.Tensor | None = None) -> None:
        super().__init__()
        self.form, self.geometry, self.is_convolution = form, Geometry.of(layer), isinstance(layer, nn.Conv2d)
        self.input_axis = -3 if self.is_convolution else -1
        shape = tuple(layer.weight.shape)
        # The bits of a convolution may depend on the strides of its weight, so they are fixed here.
        codes = torch.empty(shape, dtype=torch.uint8, memory_format=_FORMATS[len(shape)])
        self.register_buffer("codes", codes if like is None else torch.empty_like(like, dtype=torch.uint8))
        for name, size in self._float_shapes(shape, layer.bias is not None).items():
            self.register_buffer(name, None if size is None else torch.empty(size))
        self.lowest_code, _ = _range(form.weight)
        self.input_range = form.input and _range(form.input)
        one_input = (1, *shape[1:2], *[1] * len(shape[2:]))
        self.dynamic = DynamicQuantizer(form.input, one_input, "input") if form.dynamic else None

    def _float_shapes(self, weight: tuple[int, ...], has_bias: bool) -> dict[str, tuple[int, ...] | None]:
        form, (c_out, c_in, *kernel) = self.form, weight
        scale = tuple(form.weight.granularity.parameter_shape(weight))
        static = form.input is not None and not form.dynamic
        of_input = tuple(form.input.granularity.parameter_shape((1, c_in, *[1] * len(kernel)))) if static else None
        rank = form.side_rank
        return {
            "scale": scale,
            "zero_point": None if form.weight.symmetric else scale,
            "input_scale": of_input,
            "input_zero_point": None if not static or form.input.symmetric else of_input,
            "bias": (c_out,) if has_bias else None,
            "phi": (c_in,) if form.phi else None,
            "offset": (c_in,) if form.offset else None,
            "behind": None if not form.offset else (c_out, 1, *kernel) if kernel else (c_out,),
            "side_out": (c_out, rank) if rank else None,
            "side_in": (rank, c_in * self.geometry.taps) if rank else None,
        }

    def float_parts(self) -> dict[str, torch.Tensor]:
        """Name -> buffer of all parts but the codes, in a fixed order."""
        return {name: part for name, part in self.named_buffers(recurse=False) if name != "codes"}

    @property
    def is_integer(self) -> bool:
        """Whether this is one integer product: static activations per tensor, weights per channel or tensor."""
        of_input, by = self.form.input, self.form.weight.granularity
        static = of_input is not None and not (self.form.dynamic or of_input.symmetric)
        whole = self.geometry.groups == 1 and (not self.form.side_rank or self.form.side_half)
        return static and whole and isinstance(of_input.granularity, PerTensor) and by in (PerTensor(), PerChannel(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x as for the float layer."""
        scaled = self.scaled_input(x)
        y = self.operate(self.quantized_input(scaled), self.weight(), self.bias)
        if self.behind is not None:
            y.add_(self.constant(x))
        if self.side_out is not None:
            y.add_(self.side_branch(scaled if self.form.side_after_scaling else x))
        return y

    def scaled_input(self, x: torch.Tensor) -> torch.Tensor:
        """(x - o) / phi: what Q_A sees."""
        if self.offset is not None:
            x = x - broadcast_along(self.offset, self.input_axis, x.ndim)
        return x if self.phi is None else x / broadcast_along(self.phi, self.input_axis, x.ndim)

    def quantized_input(self, scaled: torch.Tensor) -> torch.Tensor:
        """Q_A of the scaled input."""
        if self.dynamic is not None:
            return self.dynamic(scaled)
        if self.input_scale is None:
            return scaled
        grouped = self.form.input.granularity.view(scaled)
        return fake_quantize(grouped, self.input_scale, self.input_zero_point, *self.input_range).reshape(scaled.shape)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32."""
        grouped = self.form.weight.granularity.view(self.codes.to(self.scale.dtype) + self.lowest_code)
        return dequantize(grouped, self.scale, self.zero_point).reshape(self.codes.shape)

    def operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The float product with this layer's geometry."""
        if not self.is_convolution:
            return F.linear(x, weight, bias)
        geometry = self.geometry
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    def constant(self, x: torch.Tensor) -> torch.Tensor:
        """W o behind the layer: (c_out,), or (1, c_out, H', W') with zeros beyond the border of x."""
        if not self.is_convolution:
            return self.behind
        return self.operate(x.new_ones(1, 1, *x.shape[-2:]), self.behind, None)

    def side_branch(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x."""
        if self.form.side_half:
            pixels = x.permute(0, 2, 3, 1) if self.is_convolution else x.reshape(1, 1, -1, x.shape[-1])
            rows = rows_by_tap(self.side_in, self.geometry).bfloat16()
            y = side_output(side_products(pixels.bfloat16(), rows, self.geometry), self.side_out, self.geometry)
            return y.permute(0, 3, 1, 2) if self.is_convolution else y.view(*x.shape[:-1], -1)
        if not self.is_convolution:
            return F.linear(F.linear(x, self.side_in), self.side_out)
        return spread(self.operate(x, self.side_in.view(-1, *self.codes.shape[1:]), None), self.side_out)


def _range(config: QuantizerConfig) -> tuple[int, int]:
    return integer_range(config.bits, config.symmetric, config.narrow_range)
