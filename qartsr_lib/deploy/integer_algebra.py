"""What turns a quantized layer into one integer product; the same on every processor.

With codes c_w and c_a, W^ = s_w c_w + z_w and x^ = s_a c_a + z_a, a layer's output is

    sum W^ x^ = s_w s_a (sum c_w c_a) + z_w s_a (sum c_a) + z_a (sum W^)

each sum over the taps inside the image. The first is the integer product; the second one channel,
the same for all outputs; the third depends on the output channel and on which taps the border cuts
off. Codes may be counted from any number, if the zero-points move along.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.quant.granularity import PerChannel, PerTensor


def is_integer(layer: InferenceLayer) -> bool:
    """Whether `layer` is one integer product: static activations per tensor, weights per channel or tensor."""
    form = layer.form
    plain = form.input is not None and not form.dynamic and isinstance(form.input.granularity, PerTensor)
    by_channel = isinstance(form.weight.granularity, PerTensor) or form.weight.granularity == PerChannel(0)
    whole = (layer.geometry or {}).get("groups", 1) == 1 and (not form.side_rank or form.side_half)
    return plain and not form.input.symmetric and by_channel and whole


@dataclass(frozen=True)
class Algebra:
    """The constants of a layer's integer product.

    Attributes:
        codes: of the weight, counted from the middle, int8, like W.
        scale: s_w s_a, (c_out,) float64.
        sum_scale: z_w s_a, (c_out,) float64.
        per_tap: z_a (sum of W^ over the input channels) + W o, what each tap inside the image adds:
            (c_out,) or (c_out, k, k) float64.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    sum_scale: torch.Tensor
    per_tap: torch.Tensor

    @classmethod
    def of(cls, layer: InferenceLayer, lowest: int = 0) -> Algebra:
        """The constants of a layer that `is_integer`, on its device.

        Args:
            lowest: code of the input's smallest value; -128 makes 8 bits signed.
        """
        channels, middle = len(layer.codes), 2 ** (layer.form.weight.bits - 1)
        scale = layer.scale.reshape(-1).expand(channels).double()
        zero_point = scale * (middle + layer.lowest_code)  # of codes counted from the middle
        if layer.zero_point is not None:
            zero_point = zero_point + layer.zero_point.reshape(-1).double()
        input_scale = layer.input_scale.double()
        input_zero_point = layer.input_zero_point.double() - lowest * input_scale
        per_tap = input_zero_point * layer.weight().double().sum(1)
        if layer.behind is not None:
            per_tap = per_tap + layer.behind.double().reshape(per_tap.shape)
        codes = (layer.codes.to(torch.int16) - middle).to(torch.int8)
        return cls(codes, scale * input_scale, zero_point * input_scale, per_tap)
