"""A quantized network as torch.export can trace it: layers of plain float operations on integer weights.

What an InferenceLayer does by compiled loops, in 16 bits or after a look at the numbers, is written here so that one
graph serves all images. A quantizer's operations are those of `quant.primitives`, one by one and in their order, so
that codes are the simulation's and nothing differs but the order of sums.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.deploy.geometry import rows_by_tap
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.quant.layers import replace_layers, spread
from qartsr_lib.quant.primitives import SCALE_FLOOR, integer_range
from qartsr_lib.quant.quantizers import QuantizerConfig


class TracedLayer(InferenceLayer):
    """An InferenceLayer, whose buffers it shares; adds to `taps.seen` (its name, input, output) of the last run.

    Attributes (buffers, None but where L2 and its product are in bfloat16):
        rows: L2 tap by tap, see `rows_by_tap`.
        gather: (r, k k r, k, k), 1 where the output of a tap goes: the convolution that sums the taps.
    """

    def __init__(self, layer: InferenceLayer, name: str, taps: SimpleNamespace) -> None:
        nn.Module.__init__(self)
        vars(self).update({**vars(layer), "_buffers": dict(layer._buffers)})
        self.name, self.taps = name, taps
        if self.form.side_half:
            rank, (height, width) = self.form.side_rank, self.geometry.kernel
            ones = torch.eye(height * width * rank).view(height, width, rank, -1)
            self.register_buffer("rows", rows_by_tap(self.side_in, self.geometry))
            self.register_buffer("gather", ones.permute(2, 3, 0, 1).contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x as for the float layer."""
        x = x.clone()  # one tensor may enter several layers, and a graph's output has one name
        y = super().forward(x)
        self.taps.seen.append((self.name, x, y))
        return y

    def quantized_input(self, scaled: torch.Tensor) -> torch.Tensor:
        """Q_A of the scaled input."""
        how, dynamic = self.form.input, self.form.dynamic
        if how is None:
            return scaled
        axis, grouped = getattr(how.granularity, "axis", None), how.granularity.view(scaled)
        if dynamic == "token":
            found = _dynamic(grouped, how)
        elif dynamic:
            found = _static(grouped, *self.dynamic.qparams(scaled), *how.code_range)
        else:
            found = _static(grouped, self.input_scale, self.input_zero_point, *how.code_range)
        return found if grouped.ndim == scaled.ndim else found.flatten(axis - 1, axis)

    def weight(self) -> torch.Tensor:
        """The dequantized weight, float32."""
        how, codes = self.form.weight, self.codes.to(torch.float32)
        codes = codes + how.code_range[0] if how.code_range[0] else codes
        found = how.granularity.view(codes) * self.scale
        return (found if self.zero_point is None else found + self.zero_point).reshape(self.codes.shape)

    def side_branch(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x; products with L2 are rounded to bfloat16 tap by tap, as InferenceLayer does it."""
        if not self.form.side_half:
            return super().side_branch(x)
        half = _bfloat16(x)
        if not self.is_convolution:
            return F.linear(_bfloat16(F.linear(half, self.rows)), self.side_out)
        taps = _bfloat16(F.conv2d(half, self.rows[:, :, None, None]))
        geometry = self.geometry
        narrow = F.conv2d(taps, self.gather, None, geometry.stride, geometry.padding, geometry.dilation)
        return spread(narrow, self.side_out)


class TracedNetwork(nn.Module):
    """Upscaled image (1, 3, H, W) in [0, 1], sides divide by `multiple` -> the result in [0, 1], and what `taps` has.

    `model` is a network with InferenceLayers; its copy here shares the tensors.
    """

    def __init__(self, model: OneStepSR) -> None:
        super().__init__()
        kept = (*model.parameters(), *model.buffers())
        self.taps = SimpleNamespace(seen=[])  # tensors in an attribute itself make torch.export warn
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in kept})
        replace_layers(
            self.model,
            lambda _, layer: isinstance(layer, InferenceLayer),
            lambda name, layer: TracedLayer(layer, name, self.taps),
        )

    @property
    def names(self) -> list[str]:
        """Of what the last `forward` gave: "image", then "<layer>:in" and "<layer>:out" of each layer in order."""
        return ["image", *(f"{layer}:{end}" for layer, *_ in self.taps.seen for end in ("in", "out"))]

    def forward(self, upscaled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(image, input of the first layer, its output, of the second, ...)."""
        self.taps.seen.clear()
        image = self.model(upscaled).clamp(0, 1)
        return image, *(tap for _, *pair in self.taps.seen for tap in pair)


def traced_input(side: int, largest: int) -> tuple[torch.Tensor, tuple[dict[int, torch.export.Dim]]]:
    """(an image to trace a TracedNetwork with, torch.export's dynamic shapes of it).

    Height and width divide by `side` and are at most `largest` pixels.
    """
    rows, columns = (torch.export.Dim(name, min=2, max=largest // side) * side for name in ("rows", "columns"))
    return torch.rand(1, 3, 3 * side, 4 * side), ({2: rows, 3: columns},)


def _bfloat16(x: torch.Tensor) -> torch.Tensor:
    """x rounded to bfloat16, by Veltkamp's splitting: OpenVINO's conversion errs where sizes are dynamic.

    8 leading bits of |x| below 5e33; a tie may go to the other side than a conversion's.
    """
    split = x * (2.0**16 + 1)
    return split - (split - x)


def _static(x, scale, zero_point, qmin, qmax):
    """`primitives.fake_quantize` without loops."""
    steps = (x if zero_point is None else x - zero_point) / scale
    codes = steps.clamp(qmin, qmax).round()
    return codes * scale if zero_point is None else codes * scale + zero_point


def _dynamic(x: torch.Tensor, how: QuantizerConfig) -> torch.Tensor:
    """`TokenQuantizer` of a grouped x; both its ranges at once, as a graph does not branch.

    Quotients of float32 numbers, taken in float64 and rounded, are those of float32.
    """
    lower, upper = x.amin(how.granularity.axis, keepdim=True), x.amax(how.granularity.axis, keepdim=True)
    unsigned, (qmin, qmax) = lower.amin(tuple(range(1, x.ndim)), keepdim=True) >= 0, how.code_range
    _, highest = integer_range(how.bits)
    positive = (upper / highest).clamp(min=torch.finfo(x.dtype).tiny)
    signed = torch.maximum(lower / qmin, upper / qmax).clamp(min=SCALE_FLOOR)
    scale = torch.where(unsigned, positive, signed)
    least, most = torch.where(unsigned, 0.0, float(qmin)), torch.where(unsigned, float(highest), float(qmax))
    return torch.minimum(torch.maximum(x / scale, least), most).round() * scale
