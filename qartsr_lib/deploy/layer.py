"""From a quantized model to its shipped form, without anything that only training needs: codes and 16-bit floats."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.geometry import Geometry, rows_by_tap, side_output, side_products
from qartsr_lib.quant.dynamic import DYNAMIC_QUANTIZERS, DynamicQuantizer
from qartsr_lib.quant.granularity import PerChannel, PerTensor, broadcast_along
from qartsr_lib.quant.layers import QuantLayer, replace_layers, spread
from qartsr_lib.quant.primitives import dequantize, fake_quantize, quantize
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.rotation import rotated

SMALLEST = 2.0**-24
"""The least positive float16, for scales that would become 0 (constant channels have such)."""


@dataclass(frozen=True)
class Form:
    """What an InferenceLayer is made of, apart from the sizes that its float layer tells; `asdict` is JSON-ready.

    Attributes:
        weight, input: their quantizers; no input quantizer for activations in full precision.
        dynamic: the input's scale comes from its values: in quant.dynamic.DYNAMIC_QUANTIZERS; "" if it is stored.
        phi, offset: whether the input is scaled, and shifted before.
        side_rank: r of L1 L2; 0 for none.
        side_after_scaling: L2 sees the scaled input instead of the layer's.
        side_half: L2 and its product with the input are in bfloat16.
        rotation: size of the blocks in which the scaled input is rotated (quant.rotation); 0 for none.
    """

    weight: QuantizerConfig
    input: QuantizerConfig | None
    dynamic: str = ""
    phi: bool = False
    offset: bool = False
    side_rank: int = 0
    side_after_scaling: bool = False
    side_half: bool = False
    rotation: int = 0

    @classmethod
    def from_dict(cls, described: Mapping) -> Form:
        """Inverse of `asdict`; KeyError, TypeError or ValueError when `described` is not one."""
        of_input = described["input"] and QuantizerConfig.from_dict(described["input"])
        dynamic = {True: "token", False: ""}.get(described["dynamic"], described["dynamic"])  # of earlier files
        weight = QuantizerConfig.from_dict(described["weight"])
        return cls(**{**described, "weight": weight, "input": of_input, "dynamic": dynamic})


class InferenceLayer(nn.Module):
    """y = dequantized codes * Q_A(H (x - o) / phi) + b + L1 L2 x + W o; what `form` lacks is left out.

    A new layer has storage and no values; `inference_form` or a packed file fills its buffers. `layer`, the float (or
    quantized) Linear or Conv2d in whose place it stands, tells sizes only; the codes get the strides of `like`,
    channels_last by default.

    Attributes (buffers, None where the form has no such part):
        codes: of Q_W, counted from 0, uint8, like W.
        scale, zero_point: of Q_W; input_scale, input_zero_point: of Q_A.
        bias: Q_B(B) as floats.
        phi, offset, signs: (c_in,), signs being H's.
        behind: W o, (c_out,), or (c_out, 1, k, k) per kernel position, which the borders need.
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, form: Form, like: torch.Tensor | None = None) -> None:
        super().__init__()
        self.form, self.geometry, self.is_convolution = form, Geometry.of(layer), isinstance(layer, nn.Conv2d)
        self.input_axis = -3 if self.is_convolution else -1
        c_out, c_in, *kernel = shape = tuple(layer.weight.shape)
        one_input = (1, c_in, *[1] * len(kernel))
        # The bits of a convolution may depend on the strides of its weight, so they are fixed here.
        layout = torch.channels_last if kernel else torch.contiguous_format
        codes = torch.empty(shape, dtype=torch.uint8, memory_format=layout)
        self.register_buffer("codes", codes if like is None else torch.empty_like(like, dtype=torch.uint8))
        scale, rank = form.weight.granularity.parameter_shape(shape), form.side_rank
        self.dynamic = DYNAMIC_QUANTIZERS.get(form.dynamic)(form.input, one_input, "input") if form.dynamic else None
        static = None if form.dynamic else form.input
        of_input = static and static.granularity.parameter_shape(one_input)
        for name, size in {
            "scale": scale,
            "zero_point": None if form.weight.symmetric else scale,
            "input_scale": of_input,
            "input_zero_point": None if static is None or static.symmetric else of_input,
            "bias": None if layer.bias is None else (c_out,),
            "phi": (c_in,) if form.phi else None,
            "offset": (c_in,) if form.offset else None,
            "signs": (c_in,) if form.rotation else None,
            "behind": None if not form.offset else (c_out, 1, *kernel) if kernel else (c_out,),
            "side_out": (c_out, rank) if rank else None,
            "side_in": (rank, c_in * self.geometry.taps) if rank else None,
        }.items():
            self.register_buffer(name, None if size is None else torch.empty(size))

    def float_parts(self) -> dict[str, torch.Tensor]:
        """Name -> buffer of all parts but the codes, in a fixed order."""
        return {name: part for name, part in self.named_buffers(recurse=False) if name != "codes"}

    @property
    def is_integer(self) -> bool:
        """Whether this is one integer product: static activations per tensor, weights per channel or tensor."""
        of_input, by = self.form.input, self.form.weight.granularity
        static = of_input is not None and not (self.form.dynamic or of_input.symmetric or self.form.rotation)
        whole = self.geometry.groups == 1 and (not self.form.side_rank or self.form.side_half)
        return static and whole and isinstance(of_input.granularity, PerTensor) and by in (PerTensor(), PerChannel(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x as for the float layer."""
        scaled = self.scaled_input(x)
        y = self.operate(self.quantized_input(self.rotated_input(scaled)), self.weight(), self.bias)
        if self.behind is not None:
            y.add_(self.constant(x))
        if self.side_out is not None:
            y.add_(self.side_branch(scaled if self.form.side_after_scaling else x))
        return y

    def scaled_input(self, x: torch.Tensor) -> torch.Tensor:
        """(x - o) / phi."""
        if self.offset is not None:
            x = x - broadcast_along(self.offset, self.input_axis, x.ndim)
        return x if self.phi is None else x / broadcast_along(self.phi, self.input_axis, x.ndim)

    def rotated_input(self, scaled: torch.Tensor) -> torch.Tensor:
        """H times the scaled input: what Q_A sees."""
        rotation = self.form.rotation
        return rotated(scaled, self.signs, rotation, self.input_axis) if rotation else scaled

    def quantized_input(self, scaled: torch.Tensor) -> torch.Tensor:
        """Q_A of the scaled and rotated input."""
        if self.dynamic is not None:
            return self.dynamic(scaled)
        if self.input_scale is None:
            return scaled
        how, grouped = self.form.input, self.form.input.granularity.view(scaled)
        return fake_quantize(grouped, self.input_scale, self.input_zero_point, *how.code_range).reshape(scaled.shape)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32."""
        how = self.form.weight
        grouped = how.granularity.view(self.codes.to(self.scale.dtype) + how.code_range[0])
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


@torch.no_grad()
def inference_form(model: nn.Module, half: bool = False) -> nn.Module:
    """A copy of a quantized and calibrated model, in eval mode, whose quantized layers are InferenceLayers.

    Args:
        half: round every float to 16 bits (and the codes to the rounded scales), so that a packed file holds exactly
            what the result computes with, and multiply by L2 in 16 bits, as the counted operations have it; else
            the outputs keep their bits.

    Raises:
        QartsrError: a layer whose weight is not quantized, or a number beyond float16.
    """
    exported = copy.deepcopy(model)
    replace_layers(
        exported, lambda _, layer: isinstance(layer, QuantLayer), lambda name, layer: _converted(layer, name, half)
    )
    if half:
        for name, tensor in (*exported.named_parameters(), *exported.named_buffers()):
            if tensor.is_floating_point():
                tensor.data = _rounded(tensor.data, name)
    return exported.eval()


def _converted(layer: QuantLayer, name: str, half: bool) -> InferenceLayer:
    if layer.weight_quantizer is None:
        raise QartsrError(f"{name}: its weight is in full precision; quantize it to weights of 2 to 8 bits first")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise QartsrError(f"{name}: padding_mode {layer.padding_mode!r} cannot be exported; only zeros can")
    parts, quantizer, of_input = layer.inference_parts(), layer.weight_quantizer, layer.input_quantizer
    form = Form(
        quantizer.config,
        None if of_input is None else of_input.config,
        dynamic=of_input.kind if isinstance(of_input, DynamicQuantizer) else "",
        phi=parts.phi is not None,
        offset=parts.offset is not None,
        side_rank=0 if parts.side_in is None else len(parts.side_in),
        side_after_scaling=parts.side_after_scaling,
        side_half=half and parts.side_in is not None,
        rotation=parts.rotation,
    )
    weight = layer.folded_weight()
    scale, zero_point = quantizer.qparams(weight)
    values = vars(parts) | {"bias": layer.quantized_parameters()[1], "scale": scale, "zero_point": zero_point}
    if of_input is not None and not form.dynamic:
        values["input_scale"], values["input_zero_point"] = of_input.qparams(weight)
    new = InferenceLayer(layer, form, None if half else weight).to(weight.device)
    for what, buffer in new.float_parts().items():
        value = _rounded(values[what], f"{name} ({what})") if half else values[what]
        if half and what == "side_in":
            value = value.bfloat16().float()  # float16, in which files hold it, represents these
        if half and what.endswith("scale"):
            value = value.clamp(min=SMALLEST)
        buffer.copy_(value)
    grouped = quantizer.config.granularity.view(weight)
    codes = quantize(grouped, new.scale, new.zero_point, *quantizer.code_range) - quantizer.code_range[0]
    new.codes.copy_(codes.reshape(weight.shape))
    return new


def _rounded(part: torch.Tensor, name: str) -> torch.Tensor:
    rounded = part.to(torch.float16).to(part.dtype)
    if not torch.isfinite(rounded).all():
        raise QartsrError(f"{name}: a value of {float(part.abs().max()):.3g} does not fit in 16 bits (float16)")
    return rounded
