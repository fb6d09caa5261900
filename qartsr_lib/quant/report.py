"""What is quantized, in how many bits, and what that stores: one row per layer."""

from __future__ import annotations

import pandas as pd
from torch import nn

from qartsr_lib.quant.bits import FLOAT_BITS
from qartsr_lib.quant.layers import QuantLayer, bits_of

COLUMNS = (
    "name",
    "type",
    "shape",
    "quantized",
    "w_bits",
    "a_bits",
    "bias_bits",
    "weights",
    "biases",
    "parameters",
    "weight_stored_bits",
    "bias_stored_bits",
    "stored_bits",
)


def report(model: nn.Module) -> pd.DataFrame:
    """One row per Linear and Conv2d of `model`, quantized or not, in order of definition.

    Columns: name (the first one, for a module shared by several), type, shape (of the weight, as
    "64x32x3x3"), quantized, w_bits, a_bits, bias_bits (32 is float; bias_bits is 0 without bias),
    weights, biases, parameters (counts), weight_stored_bits (codes, the scales and zero-points of
    weight and input at 16 bits each, side branches), bias_stored_bits, stored_bits (both).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return pd.DataFrame([_row(name, layer) for name, layer in layers], columns=list(COLUMNS))


def w_bits_effective(layers: pd.DataFrame) -> float:
    """Stored bits per weight over a whole network's report: all weight_stored_bits / all weights.

    Biases are no weights and count on neither side, so that W32A32 gives 32. Layers that a
    UNet-only method leaves alone count with their 32 bits, and so does a network without weights
    (bicubic interpolation).
    """
    weights = layers["weights"].sum()
    return float(layers["weight_stored_bits"].sum() / weights) if weights else float(FLOAT_BITS)


def _row(name: str, layer: nn.Linear | nn.Conv2d) -> dict:
    weights = layer.weight.numel()
    biases = 0 if layer.bias is None else layer.bias.numel()
    row = {
        "name": name,
        "type": type(layer).__name__,
        "shape": "x".join(str(size) for size in layer.weight.shape),
        "weights": weights,
        "biases": biases,
        "parameters": weights + biases,
    }
    if isinstance(layer, QuantLayer):
        row |= {
            "quantized": True,
            "w_bits": bits_of(layer.weight_quantizer),
            "a_bits": bits_of(layer.input_quantizer),
            "bias_bits": bits_of(layer.bias_quantizer),
            "weight_stored_bits": layer.stored_weight_bits,
            "bias_stored_bits": layer.stored_bias_bits,
        }
    else:
        row |= dict.fromkeys(("w_bits", "a_bits", "bias_bits"), FLOAT_BITS)
        row |= {
            "quantized": False,
            "weight_stored_bits": weights * FLOAT_BITS,
            "bias_stored_bits": biases * FLOAT_BITS,
        }
    if biases == 0:
        row["bias_bits"] = 0
    return row | {"stored_bits": row["weight_stored_bits"] + row["bias_stored_bits"]}
