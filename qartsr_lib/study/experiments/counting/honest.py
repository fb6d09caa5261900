"""Rule `honest`: everything that a quantized network stores and computes, against the same count in 32 bits.

As in the paper a parameter or operation at b bits counts b / 32. Stored is what apply.report counts - codes, scales,
zero-points, low-rank branches and phi (16 bits each), biases, 8-bit layers - and normalizations in 32 bits. Computed
are, at their own widths, the products of every layer (the wider of weight and activation decides), low-rank branches,
attention products, quantizing and rescaling, and all that is elementwise. Text is left out on both sides: the
quantized models have a constant prompt embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pandas as pd

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.methods import METHODS, Method
from qartsr_lib.methods.setting import DEFAULT, Setting
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.quantizers import QPARAM_BITS
from qartsr_lib.quant.scheme import FLOAT_BITS, QuantScheme
from qartsr_lib.study.experiments.counting.trace import LAYERS

#: Per element of a quantized layer's input: divide by the step, subtract the zero-point; phi is merged into
#: the step. Per element of its output: multiply by the product of the steps, add what the zero-points amount to.
PER_INPUT, PER_OUTPUT = 2, 2
QUANTIZED, EXCEPTIONS, FLOAT = "quantized layers", "8-bit layers", "unquantized layers"
BRANCHES, SCALES = "low-rank branches and phi", "scales and zero-points"
ATTENTION, REST = "attention products", "biases, normalizations, elementwise"
COMPONENTS = (QUANTIZED, EXCEPTIONS, FLOAT, BRANCHES, SCALES, ATTENTION, REST)


def components(model: OneStepSR, layers: pd.DataFrame, methods: Sequence[str], bits: Sequence[str]) -> pd.DataFrame:
    """Where the cost of every row of the honest rule comes from, for `model` in full precision and its `trace`.

    Rows method (its label), bits, component (of COMPONENTS), params_M, ops_G. A QartsrError for unknown methods, lists
    or bits, or a method without a scheme.

    Args:
        methods: names, or "name@list" with another of methods.setting.EIGHT_BIT_LISTS than the shared one.
    """
    frames = [_sums(model, layers, QuantScheme()).assign(method="OSEDiff", bits="W32A32")]
    quantized: dict[tuple, OneStepSR] = {}
    for width in bits:
        for name in methods:
            (method, setting), label = parsed(name), label_of(name)
            scheme = setting.scheme(method.scheme(), model, width)
            # Which quantizers and branches there are does not depend on the bits: one conversion serves all widths.
            key = (name, scheme.bits.w == FLOAT_BITS, scheme.bits.a == FLOAT_BITS)
            if key not in quantized:
                quantized[key] = copy.deepcopy(model)
                quantize_(quantized[key], scheme, method.only)
            frames.append(_sums(quantized[key], layers, scheme).assign(method=label, bits=str(scheme.bits)))
    return pd.concat(frames, ignore_index=True)[["method", "bits", "component", "params_M", "ops_G"]]


def parsed(name: str) -> tuple[Method, Setting]:
    """The method and the setting of "name" or "name@list"."""
    method, _, eight_bit = name.partition("@")
    return METHODS.get(method), Setting(eight_bit) if eight_bit else DEFAULT


def label_of(name: str) -> str:
    """Name in the table of "name" or "name@list"."""
    method, setting = parsed(name)
    if setting == DEFAULT:
        return method.label
    base, _, variant = method.label.removesuffix("]").partition(" [")
    return f"{base} [{', '.join(filter(None, (variant, setting.eight_bit)))}]"


def _sums(quantized: OneStepSR, layers: pd.DataFrame, scheme: QuantScheme) -> pd.DataFrame:
    """Bits come from `scheme`, everything else from the layers of `quantized`."""
    modules = dict(quantized.named_modules())
    costs = [cost for row in layers.itertuples() for cost in _costs(row, modules[row.name], scheme)]
    sums = pd.DataFrame(costs, columns=["component", "params_M", "ops_G"]).groupby("component").sum()
    return (sums.reindex(COMPONENTS, fill_value=0) / FLOAT_BITS / [1e6, 1e9]).reset_index()


def _costs(row, layer, scheme: QuantScheme) -> Iterator[tuple[str, int, int]]:
    """(component, bits stored, operations times bits) of one row of `trace`."""
    yield REST, FLOAT_BITS * row.other_parameters, FLOAT_BITS * row.elementwise
    if row.kind == "attention":
        yield ATTENTION, 0, 2 * row.macs * (scheme.attention_bits_for(row.name) or FLOAT_BITS)
    elif row.kind in LAYERS and not isinstance(layer, QuantLayer):
        yield FLOAT, FLOAT_BITS * row.weights, FLOAT_BITS * 2 * row.macs
        yield REST, FLOAT_BITS * row.biases, 0
    elif row.kind in LAYERS:
        yield from _quantized_costs(row, layer, scheme)


def _quantized_costs(row, layer: QuantLayer, scheme: QuantScheme) -> Iterator[tuple[str, int, int]]:
    config = scheme.layer_config(row.name)
    parts = config.weight, config.activation, config.bias
    w_bits, a_bits, bias_bits = (FLOAT_BITS if part is None else part.bits for part in parts)
    width = max(w_bits, a_bits)
    kind = QUANTIZED if scheme.bits_for(row.name) == scheme.bits else EXCEPTIONS
    yield kind, row.weights * w_bits, width * 2 * row.macs
    yield REST, row.biases * bias_bits, 0
    if layer.side_branch_bits:
        branch = 2 * layer.side_branch_macs * row.outputs // row.out_channels
        yield BRANCHES, layer.side_branch_bits, QPARAM_BITS * (branch + row.outputs)  # added to the quantized product
    for quantizer in (layer.weight_quantizer, layer.input_quantizer, layer.bias_quantizer):
        if quantizer is not None:
            yield SCALES, quantizer.stored_parameter_bits, 0
    if layer.input_quantizer is not None:
        yield SCALES, 0, FLOAT_BITS * PER_INPUT * row.inputs
    if layer.weight_quantizer is not None:
        groups = max(1, layer.weight_quantizer.scale.numel() // row.out_channels)  # partial sums with a step each
        yield SCALES, 0, FLOAT_BITS * PER_OUTPUT * row.outputs * groups
        if layer.weight_quantizer.zero_point is not None:
            # The sum of the codes in every window: as one more output channel without products.
            yield SCALES, 0, width * (row.macs // row.out_channels)
