"""The one verb that quantizes a network by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.layers import LAYER_KINDS, QuantLayer, replace_layers
from qartsr_lib.quant.report import report
from qartsr_lib.quant.scheme import QuantScheme, matches

EVERYTHING = ("*",)


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
    """Replace every nn.Linear and nn.Conv2d of `model` by its quantized class, in place.

    Weights are shared with the layers replaced, and quantized from here on; activation
    quantizers need `calibrate` before the first quantized forward. Exactly these two classes are
    converted, subclasses are left alone. A module registered under several names (diffusers does
    that) stays one module. Layers that the scheme leaves at W32A32 are not touched.

    Args:
        model: any network; convert a deep copy to keep the original.
        scheme: bits and rules.
        only: fnmatch patterns on full layer names, e.g. ("unet.*",) for the UNet alone.

    Returns:
        The `report` over the whole network, converted or not.

    Raises:
        QartsrError: `only` matches no layer, a matching layer is quantized already, or a weight
            is not finite.
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
        raise QartsrError(f"only={', '.join(only)}: matches no Linear or Conv2d layer; patterns look like unet.*")
    if scheme.attention_config() is not None:
        # Imported here: diffusers takes seconds to import, and only this option needs it.
        from qartsr_lib.quant.attention import quantize_products_

        quantize_products_(model, scheme, only)
    record = getattr(model, "quantization", QuantRecord())
    model.quantization = replace(record, steps=(*record.steps, (scheme, tuple(only))))
    return report(model)
