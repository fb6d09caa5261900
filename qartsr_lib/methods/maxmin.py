"""MaxMin (Jacob et al., arXiv:1712.05877): min/max ranges from calibration, no training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from qartsr_lib.methods.base import METHODS, Method, MethodResult, check_calibration_images
from qartsr_lib.quant.apply import EVERYTHING, quantize_
from qartsr_lib.quant.bits import Bits, parse_bits
from qartsr_lib.quant.range_store import SHARED_RANGES
from qartsr_lib.quant.report import w_bits_effective
from qartsr_lib.quant.scheme import KNOBS, SHARED_SETTING, QuantScheme, variant


class MaxMin(Method):
    """The shared setting and nothing else: weights by their own min/max, activations by calibration.

    Deterministic, so `seed` has no effect. Options turn the ablation's knobs, see
    quant.scheme.variant; their defaults are the shared setting.

    Args:
        name, label: registry key and table name.
        only: fnmatch patterns of the layers to quantize.
    """

    options = KNOBS

    def __init__(self, name: str, label: str, only: tuple[str, ...] = EVERYTHING) -> None:
        self.name, self.label, self.only = name, label, only

    def scheme(self) -> QuantScheme:
        return SHARED_SETTING

    def build(
        self,
        backbone: nn.Module,
        bits: str | Bits,
        calibration_images: list[torch.Tensor],
        *,
        seed: int = 0,
        **options,
    ) -> MethodResult:
        self.check_options(options)
        scheme = variant(self.scheme(), **options).at(parse_bits(bits), backbone.eight_bit_layers)
        if not scheme.bits.is_full_precision:
            check_calibration_images(calibration_images)
        quantized = copy.deepcopy(backbone)
        layers = quantize_(quantized, scheme, self.only)
        if not scheme.bits.is_full_precision:
            SHARED_RANGES.calibrate(backbone, quantized, calibration_images, f"calibrate {self.label}")
            quantized.quantization = replace(quantized.quantization, method=self.name)
        return MethodResult(quantized, layers, w_bits_effective(layers), steps=0)


#: Name -> the part's name in tables and the layers it consists of; the control "which part does it".
PARTS = {
    "maxmin-encoder": ("encoder", ("vae.encoder.*", "vae.quant_conv")),
    "maxmin-unet": ("UNet", ("unet.*",)),
    "maxmin-decoder": ("decoder", ("vae.post_quant_conv", "vae.decoder.*")),
}

METHODS.register("maxmin")(MaxMin("maxmin", "MaxMin"))
for _name, (_part, _layers) in PARTS.items():
    METHODS.register(_name)(MaxMin(_name, f"MaxMin [{_part} only]", only=_layers))
