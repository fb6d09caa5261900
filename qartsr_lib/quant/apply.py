"""The one verb that quantizes a network by rule, and what that stores, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.layers import LAYER_KINDS, QuantLayer, replace_layers
from qartsr_lib.quant.scheme import FLOAT_BITS, QuantScheme, matches

EVERYTHING = ("*",)
_COLUMNS = ["name", "type", "shape", "quantized", "w_bits", "a_bits", "bias_bits", "weights", "biases", "parameters"]
_COLUMNS += ["weight_stored_bits", "bias_stored_bits", "stored_bits"]


@dataclass(frozen=True)
class QuantRecord:
    """How a network was quantized: enough to build it again. Kept as `model.quantization`.

    Attributes:
        steps: the (scheme, only) pairs of the quantize_ calls, in order.
        method: cli name of the method, "" when quantize_ was called by hand.
    """

    steps: tuple[tuple[QuantScheme, tuple[str, ...]], ...] = ()
    method: str = ""


def quantize_(model: nn.Module, scheme: QuantScheme, only: Sequence[str] = EVERYTHING) -> pd.DataFrame:
    """Replace every nn.Linear and nn.Conv2d of `model` by its quantized class, in place; returns the `report`.

    Weights are shared with the layers replaced, and quantized from here on; activation quantizers need `calibrate`
    before the first quantized forward. Exactly these two classes are converted, subclasses are left alone. A module
    registered under several names (diffusers does that) stays one. Layers that the scheme leaves at W32A32 stay.

    Args:
        model: any network; convert a deep copy to keep the original.
        scheme: bits and rules.
        only: fnmatch patterns on full layer names, e.g. ("unet.*",) for the UNet alone.

    Raises:
        QartsrError: `only` matches no layer, a matching layer is quantized already, or a weight is not finite.
    """
    if scheme.bits.is_full_precision:
        return report(model)
    kinds, options = LAYER_KINDS.get(scheme.layer_kind), dict(scheme.layer_options)

    def chosen(name: str, layer: nn.Module) -> bool:
        if matches(name, only) and isinstance(layer, QuantLayer):
            raise QartsrError(f"{name}: already quantized; start again from a full-precision copy")
        return matches(name, only) and type(layer) in kinds

    def convert(name: str, layer: nn.Module) -> QuantLayer:
        return kinds[type(layer)].from_float(layer, scheme.layer_config(name), name, **options)

    if not replace_layers(model, chosen, convert):
        if tuple(only) == EVERYTHING:
            raise QartsrError("this backbone has no Linear or Conv2d layer, so nothing to quantize; choose another")
        raise QartsrError(f"only={', '.join(only)}: matches no Linear or Conv2d layer; patterns look like unet.*")
    if scheme.attention_config() is not None:
        # Imported here: diffusers takes seconds to import, and only this option needs it.
        from qartsr_lib.quant.attention import quantize_products_

        quantize_products_(model, scheme, only)
    record = getattr(model, "quantization", QuantRecord())
    model.quantization = replace(record, steps=(*record.steps, (scheme, tuple(only))))
    return report(model)


def report(model: nn.Module) -> pd.DataFrame:
    """One row per Linear and Conv2d of `model`, quantized or not, in order of definition.

    Columns: name (the first one, for a module shared by several), type, shape (of the weight, as "64x32x3x3"),
    quantized, w_bits, a_bits, bias_bits (32 is float; bias_bits is 0 without bias), weights, biases, parameters
    (counts), weight_stored_bits (codes, the scales and zero-points of weight and input at 16 bits each, side
    branches), bias_stored_bits, stored_bits (both).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return pd.DataFrame([_row(name, layer) for name, layer in layers], columns=_COLUMNS)


def w_bits_effective(layers: pd.DataFrame) -> float:
    """Stored bits per weight over a whole network's report: all weight_stored_bits / all weights.

    Biases are no weights and count on neither side, so that W32A32 gives 32. Layers that a UNet-only method leaves
    alone count with their 32 bits, and so does a network without weights (bicubic interpolation).
    """
    weights = layers["weights"].sum()
    return float(layers["weight_stored_bits"].sum() / weights) if weights else float(FLOAT_BITS)


def _row(name: str, layer: nn.Linear | nn.Conv2d) -> tuple:
    quantizers = [getattr(layer, f"{what}_quantizer", None) for what in ("weight", "input", "bias")]
    w_bits, a_bits, bias_bits = (FLOAT_BITS if q is None else q.config.bits for q in quantizers)
    of_weight, of_input, of_bias = (0 if q is None else q.stored_parameter_bits for q in quantizers)
    weights, biases = layer.weight.numel(), 0 if layer.bias is None else layer.bias.numel()
    of_weight += weights * w_bits + of_input + getattr(layer, "side_branch_bits", 0)
    of_bias += biases * bias_bits
    stored = of_weight, of_bias, of_weight + of_bias
    about = name, type(layer).__name__, "x".join(map(str, layer.weight.shape)), hasattr(layer, "weight_quantizer")
    return *about, w_bits, a_bits, bias_bits if biases else 0, weights, biases, weights + biases, *stored
