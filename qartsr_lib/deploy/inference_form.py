"""From a quantized model to its shipped form: codes instead of W, merged updates, 16-bit floats."""

from __future__ import annotations

import copy

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import Form, InferenceLayer
from qartsr_lib.quant.layers import QuantLayer, replace_layers
from qartsr_lib.quant.primitives import quantize
from qartsr_lib.quant.quantizers import DynamicQuantizer

SMALLEST = 2.0**-24
"""The least positive float16, for scales that would become 0 (constant channels have such)."""


@torch.no_grad()
def inference_form(model: nn.Module, half: bool = False) -> nn.Module:
    """A copy of a quantized and calibrated model, in eval mode, whose quantized layers are InferenceLayers.

    Args:
        half: round every float to 16 bits (and the codes to the rounded scales), so that a packed file holds exactly
            what the result computes with, and multiply by L2 in 16 bits, as the counted operations have it; else
            the outputs keep their bits.

    Raises:
        QartsrError: a layer whose weight is not quantized, or a number beyond float16.
    """
    exported = copy.deepcopy(model)
    replace_layers(
        exported, lambda _, layer: isinstance(layer, QuantLayer), lambda name, layer: _converted(layer, name, half)
    )
    if half:
        for name, tensor in (*exported.named_parameters(), *exported.named_buffers()):
            if tensor.is_floating_point():
                tensor.data = _rounded(tensor.data, name)
    return exported.eval()


def _converted(layer: QuantLayer, name: str, half: bool) -> InferenceLayer:
    if layer.weight_quantizer is None:
        raise QartsrError(f"{name}: its weight is in full precision; there is nothing to export, quantize it first")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise QartsrError(f"{name}: padding_mode {layer.padding_mode!r} cannot be exported; only zeros can")
    parts, quantizer, of_input = layer.inference_parts(), layer.weight_quantizer, layer.input_quantizer
    form = Form(
        quantizer.config,
        None if of_input is None else of_input.config,
        dynamic=isinstance(of_input, DynamicQuantizer),
        phi=parts.phi is not None,
        offset=parts.offset is not None,
        side_rank=0 if parts.side_in is None else len(parts.side_in),
        side_after_scaling=parts.side_after_scaling,
        side_half=half and parts.side_in is not None,
    )
    weight = layer.folded_weight()
    scale, zero_point = quantizer.qparams(weight)
    values = vars(parts) | {"bias": layer.quantized_parameters()[1], "scale": scale, "zero_point": zero_point}
    if of_input is not None and not form.dynamic:
        values["input_scale"], values["input_zero_point"] = of_input.qparams(weight)
    new = InferenceLayer(layer, form, None if half else weight).to(weight.device)
    for what, buffer in new.float_parts().items():
        value = _rounded(values[what], f"{name} ({what})") if half else values[what]
        if half and what == "side_in":
            value = value.bfloat16().float()  # float16, in which files hold it, represents these
        if half and what.endswith("scale"):
            value = value.clamp(min=SMALLEST)
        buffer.copy_(value)
    grouped = quantizer.config.granularity.view(weight)
    codes = quantize(grouped, new.scale, new.zero_point, *quantizer.code_range) - new.lowest_code
    new.codes.copy_(codes.reshape(weight.shape))
    return new


def _rounded(part: torch.Tensor, name: str) -> torch.Tensor:
    rounded = part.to(torch.float16).to(part.dtype)
    if not torch.isfinite(rounded).all():
        raise QartsrError(f"{name}: a value of {float(part.abs().max()):.3g} does not fit in 16 bits (float16)")
    return rounded
