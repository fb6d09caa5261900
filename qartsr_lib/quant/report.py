"""What is quantized, in how many bits, and what that stores: one row per layer."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from qartsr_lib.quant.bits import FLOAT_BITS
from qartsr_lib.quant.quantizers import Quantizer

COLUMNS = ["name", "type", "shape", "quantized", "w_bits", "a_bits", "bias_bits", "weights", "biases", "parameters"]
COLUMNS += ["weight_stored_bits", "bias_stored_bits", "stored_bits"]


def report(model: nn.Module) -> pd.DataFrame:
    """One row per Linear and Conv2d of `model`, quantized or not, in order of definition.

    Columns: name (the first one, for a module shared by several), type, shape (of the weight, as
    "64x32x3x3"), quantized, w_bits, a_bits, bias_bits (32 is float; bias_bits is 0 without bias),
    weights, biases, parameters (counts), weight_stored_bits (codes, the scales and zero-points of
    weight and input at 16 bits each, side branches), bias_stored_bits, stored_bits (both).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return pd.DataFrame([_row(name, layer) for name, layer in layers], columns=COLUMNS)


def w_bits_effective(layers: pd.DataFrame) -> float:
    """Stored bits per weight over a whole network's report: all weight_stored_bits / all weights.

    Biases are no weights and count on neither side, so that W32A32 gives 32. Layers that a
    UNet-only method leaves alone count with their 32 bits, and so does a network without weights
    (bicubic interpolation).
    """
    weights = layers["weights"].sum()
    return float(layers["weight_stored_bits"].sum() / weights) if weights else float(FLOAT_BITS)


def _row(name: str, layer: nn.Linear | nn.Conv2d) -> tuple:
    of_weight, of_input, of_bias = (getattr(layer, f"{what}_quantizer", None) for what in ("weight", "input", "bias"))
    shape, weights, biases = "x".join(map(str, layer.weight.shape)), _count(layer.weight), _count(layer.bias)
    w_bits, a_bits, bias_bits = (FLOAT_BITS if q is None else q.config.bits for q in (of_weight, of_input, of_bias))
    of_weight_bits = weights * w_bits + _scales(of_weight) + _scales(of_input) + getattr(layer, "side_branch_bits", 0)
    of_bias_bits = biases * bias_bits + _scales(of_bias)
    bits = (w_bits, a_bits, bias_bits if biases else 0)
    counts = (weights, biases, weights + biases, of_weight_bits, of_bias_bits, of_weight_bits + of_bias_bits)
    return name, type(layer).__name__, shape, hasattr(layer, "weight_quantizer"), *bits, *counts


def _count(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _scales(quantizer: Quantizer | None) -> int:
    return 0 if quantizer is None else quantizer.stored_parameter_bits
