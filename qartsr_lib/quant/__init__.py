"""Quantization core: fake quantization, observers, quantized layers, and the verb that applies them."""

from qartsr_lib.quant.apply import QuantRecord, quantize_
from qartsr_lib.quant.bits import Bits, parse_bits
from qartsr_lib.quant.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qartsr_lib.quant.layers import LAYER_KINDS, LayerConfig, QuantConv2d, QuantLayer, QuantLinear
from qartsr_lib.quant.observers import OBSERVERS
from qartsr_lib.quant.primitives import (
    affine_qparams,
    dequantize,
    fake_quantize,
    integer_range,
    quantize,
    round_ste,
    symmetric_qparams,
)
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.report import report, w_bits_effective
from qartsr_lib.quant.scheme import KNOBS, SHARED_SETTING, QuantScheme, variant
from qartsr_lib.quant.states import (
    QuantModule,
    QuantState,
    calibrate,
    calibrating,
    full_precision,
    in_state,
    quant_modules,
)

__all__ = [
    "KNOBS",
    "LAYER_KINDS",
    "OBSERVERS",
    "SHARED_SETTING",
    "Bits",
    "Granularity",
    "LayerConfig",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantModule",
    "QuantRecord",
    "QuantScheme",
    "QuantState",
    "Quantizer",
    "QuantizerConfig",
    "affine_qparams",
    "calibrate",
    "calibrating",
    "dequantize",
    "fake_quantize",
    "full_precision",
    "in_state",
    "integer_range",
    "parse_bits",
    "quant_modules",
    "quantize",
    "quantize_",
    "report",
    "round_ste",
    "symmetric_qparams",
    "variant",
    "w_bits_effective",
]
