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

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.granularity import PerChannel, PerTensor
from qartsr_lib.quant.side_branch import spread


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
        self.geometry, self.input_axis = layer.geometry, layer.input_axis
        self.largest_code = layer.input_range[1]
        self.side_after_scaling = layer.form.side_after_scaling
        self.register_buffer("codes", (layer.codes.to(torch.int16) - middle).to(torch.int8))
        self.register_buffer("product_scale", (scale * input_scale).float())
        self.register_buffer("sum_scale", (zero_point * input_scale).float())
        self.register_buffer("per_tap", per_tap.float())
        self.register_buffer("no_zero_point", torch.zeros(channels, dtype=torch.int64))
        for name in ("input_scale", "input_zero_point", "bias", "phi", "offset", "side_out", "side_in"):
            self.register_buffer(name, getattr(layer, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x float32 as for the float layer."""
        scaled = self._scaled(x)
        codes = torch.sub(scaled, self.input_zero_point).div(self.input_scale).clamp(0, self.largest_code).round()
        y = self.product(codes.to(torch.uint8), self.product_scale)
        y = y + self._code_sums(codes) * self._per_output(self.sum_scale) + self._constants(x)
        return y if self.side_out is None else y + self._side_branch(scaled if self.side_after_scaling else x)

    def product(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """scale (per output channel) times the integer product of the weight's codes and `codes`, float32."""
        rest = (1.0, 0, torch.float32, "none", [], "")
        if self.geometry is None:
            packed = torch.ops.onednn.qlinear_prepack(self.codes, None)
            return torch.ops.onednn.qlinear_pointwise(codes, 1.0, 0, packed, scale, self.no_zero_point, None, *rest)
        shape = [list(self.geometry[name]) for name in ("stride", "padding", "dilation")]
        packed = torch.ops.onednn.qconv_prepack(self.codes, scale, 1.0, 0, *shape, 1, None)
        quantized = (codes, 1.0, 0, packed, scale, self.no_zero_point, None)
        return torch.ops.onednn.qconv2d_pointwise(*quantized, *shape, 1, *rest)

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.ndim
        shape[self.input_axis] = -1
        if self.offset is not None:
            x = x - self.offset.view(shape)
        return x if self.phi is None else x / self.phi.view(shape)

    def _per_output(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.geometry is None else values.view(1, -1, 1, 1)

    def _code_sums(self, codes: torch.Tensor) -> torch.Tensor:
        """Sum of the codes under each output's kernel, one channel."""
        sums = codes.sum(self.input_axis, keepdim=True)
        kernel = self.codes.shape[2:]
        if self.geometry is None or (kernel == (1, 1) and tuple(self.geometry["stride"]) == (1, 1)):
            return sums
        return F.conv2d(sums, sums.new_ones(1, 1, *kernel), **self.geometry)

    def _constants(self, x: torch.Tensor) -> torch.Tensor:
        """What does not depend on the codes: bias, z_a times the weights inside the image, W o."""
        bias = 0 if self.bias is None else self._per_output(self.bias)
        if self.geometry is None:
            return self.per_tap + bias
        parts = [
            _valid_taps(size, taps, *(self.geometry[name][axis] for name in ("stride", "padding", "dilation")))
            for axis, (size, taps) in enumerate(zip(x.shape[-2:], self.codes.shape[2:], strict=True))
        ]
        (rows, row_of), (columns, column_of) = parts
        table = torch.einsum("okl,rk,cl->orc", self.per_tap, rows.to(x), columns.to(x))
        return table[:, row_of[:, None], column_of[None, :]][None] + bias

    def _side_branch(self, x: torch.Tensor) -> torch.Tensor:
        if self.geometry is None:
            return F.linear(F.linear(x, self.side_in), self.side_out)
        return spread(F.conv2d(x, self.side_in.view(-1, *self.codes.shape[1:]), **self.geometry), self.side_out)


def _valid_taps(size: int, taps: int, stride: int, padding: int, dilation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Along one axis: the distinct sets of kernel taps inside the image, (sets, taps), and each output's number."""
    count = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    sets: dict[tuple[int, ...], int] = {}
    which = []
    for position in range(count):
        inside = tuple(int(0 <= position * stride - padding + tap * dilation < size) for tap in range(taps))
        which.append(sets.setdefault(inside, len(sets)))
    return torch.tensor(list(sets), dtype=torch.float32), torch.tensor(which)
