"""Integer execution on a CPU: convolutions and linear layers as int8 products with int32 sums (oneDNN).

With codes c_w and c_a, W^ = s_w c_w + z_w and x^ = s_a c_a + z_a, a layer's output is

    sum W^ x^ = s_w s_a (sum c_w c_a) + z_w s_a (sum c_a) + z_a (sum W^)

each sum over the taps inside the image. The first is the integer product; the second one channel,
the same for all outputs; the third depends on the output channel and on which taps the border cuts
off, and lies in a small table together with the bias and PassionSR's W o.

Codes of up to 8 bits are held in 8: activations unsigned, weights shifted to signed. Sums are exact
on CPUs with VNNI or AMX; older ones (AVX2 alone) may saturate at 8 bits, not at 6 and fewer.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.deploy.integer_ops import Geometry, IntegerProduct, integer_layer
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.granularity import PerChannel, PerTensor


def is_integer(layer: InferenceLayer) -> bool:
    """Whether `layer` is one integer product: static activations per tensor, weights per channel or tensor."""
    form = layer.form
    plain = form.input is not None and not form.dynamic and isinstance(form.input.granularity, PerTensor)
    by_channel = isinstance(form.weight.granularity, PerTensor) or form.weight.granularity == PerChannel(0)
    return plain and not form.input.symmetric and by_channel and (layer.geometry or {}).get("groups", 1) == 1


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
    converted, made = copy.deepcopy(model), {}
    for parent in list(converted.modules()):
        for key, layer in list(parent._modules.items()):
            if isinstance(layer, InferenceLayer) and is_integer(layer):
                if id(layer) not in made:
                    made[id(layer)] = IntegerLayer(layer)
                setattr(parent, key, made[id(layer)])
    if not made:
        raise QartsrError("--runtime int8: no layer of this model is an integer product; use --runtime simulate")
    return converted.eval()


class IntegerLayer(nn.Module):
    """An InferenceLayer in integers; its outputs are equal to 1e-5 of their size.

    Args:
        layer: one that `is_integer`; not changed.
    """

    def __init__(self, layer: InferenceLayer) -> None:
        super().__init__()
        channels, middle = len(layer.codes), 2 ** (layer.form.weight.bits - 1)
        scale = layer.scale.reshape(-1).expand(channels).double()
        zero_point = scale * (middle + layer.lowest_code)  # of codes counted from the middle
        if layer.zero_point is not None:
            zero_point = zero_point + layer.zero_point.reshape(-1).double()
        input_scale = layer.input_scale.double()
        per_tap = layer.input_zero_point.double() * layer.weight().double().sum(1)
        if layer.behind is not None:
            per_tap = per_tap + layer.behind.double().reshape(per_tap.shape)
        codes, kernel = (layer.codes.to(torch.int16) - middle).to(torch.int8), tuple(layer.codes.shape[2:])
        geometry = layer.geometry and Geometry(kernel, *(layer.geometry[n] for n in ("stride", "padding", "dilation")))
        sum_scale, side_out = zero_point * input_scale, layer.side_out
        self.product = IntegerProduct(codes, scale * input_scale, sum_scale, per_tap, layer.bias, side_out, geometry)
        self.largest_code = layer.input_range[1]
        self.side_after_scaling = layer.form.side_after_scaling
        axes = 0 if geometry is None else 2
        self.channel_axis = -1 - axes
        for name in ("phi", "offset"):
            part = getattr(layer, name)
            self.register_buffer(name, None if part is None else part.view(-1, *[1] * axes))
        for name in ("input_scale", "input_zero_point"):
            self.register_buffer(name, getattr(layer, name))
        self.register_buffer("side_in", None if layer.side_in is None else by_tap(layer.side_in, kernel))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x float32 as for the float layer."""
        scaled = x if self.offset is None else x - self.offset
        if self.phi is not None:
            scaled = scaled / self.phi
        codes = torch.sub(scaled, self.input_zero_point).div(self.input_scale).clamp(0, self.largest_code).round()
        planes = None if self.side_in is None else self._side_planes(scaled if self.side_after_scaling else x)
        return integer_layer(codes.to(torch.uint8), codes.sum(self.channel_axis), planes, self.product.number)

    def _side_planes(self, x: torch.Tensor) -> torch.Tensor:
        """L2 x; of a convolution, which has few outputs here, the product of all its taps at once."""
        if self.product.geometry is None:
            return F.linear(x, self.side_in)
        samples, channels, height, width = x.shape
        positions = x.permute(0, 2, 3, 1).reshape(-1, channels)
        taps = math.prod(self.product.geometry.kernel)
        return torch.mm(self.side_in, positions.t()).view(taps, -1, samples, height, width)


def by_tap(side_in: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """L2 (r, c_in k k) with a row for each tap and rank, (k k r, c_in); for a linear layer as it is."""
    if not kernel:
        return side_in
    rank, taps = len(side_in), kernel[0] * kernel[1]
    return side_in.view(rank, -1, taps).permute(2, 0, 1).reshape(taps * rank, -1).contiguous()
