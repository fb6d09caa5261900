"""The exported form of a finetuned network: codes instead of W, F merged, only what inference needs."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.primitives import dequantize, quantize
from qartsr_lib.quant.side_branch import spread


class InferenceLayer(nn.Module):
    """y = L1 L2 x + dequantized codes * Q_A(x / phi) + b, with the bits of the training form.

    Args:
        layer: a calibrated quantized Linear or Conv2d whose weight is quantized. W, F1 and F2 are
            not kept: their merged weight is there as codes.

    Attributes:
        codes: of Q_W, uint8, like W.
        scale, zero_point: of Q_W, float32.
        bias: Q_B(B) as floats, or None.
        phi: (c_in,), or None; side_out, side_in: L1 and L2, or None.
        input_quantizer: Q_A.
    """

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        weight, quantizer = layer.folded_weight().detach(), layer.weight_quantizer
        scale, zero_point = (part.detach() for part in quantizer.qparams(weight))
        self.granularity = quantizer.config.granularity
        codes = quantize(self.granularity.view(weight), scale, zero_point, *quantizer.code_range)
        self.register_buffer("codes", codes.reshape(weight.shape).to(torch.uint8))
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())
        _, bias = layer.quantized_parameters()
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        log_phi = getattr(layer, "log_phi", None)
        self.register_buffer("phi", None if log_phi is None else log_phi.detach().exp())
        for name in ("side_out", "side_in"):
            part = getattr(layer, name, None)
            self.register_buffer(name, None if part is None else part.detach().clone())
        self.input_quantizer = copy.deepcopy(layer.input_quantizer).requires_grad_(False)
        self.input_axis = layer.input_axis
        names = ("stride", "padding", "dilation", "groups")
        self.geometry = {name: getattr(layer, name) for name in names} if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output; x as for the float layer."""
        codes = self.granularity.view(self.codes.to(x.dtype))
        weight = dequantize(codes, self.scale, self.zero_point).reshape(self.codes.shape)
        scaled = x
        if self.phi is not None:
            shape = [1] * x.ndim
            shape[self.input_axis] = -1
            scaled = x / self.phi.view(shape)
        if self.input_quantizer is not None:
            scaled = self.input_quantizer(scaled)
        y = self._operate(scaled, weight, self.bias)
        return y if self.side_out is None else y + self._side_branch(x)

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias) if self.geometry is None else F.conv2d(x, weight, bias, **self.geometry)

    def _side_branch(self, x: torch.Tensor) -> torch.Tensor:
        if self.geometry is None:
            return F.linear(F.linear(x, self.side_in), self.side_out)
        narrow = self._operate(x, self.side_in.view(-1, *self.codes.shape[1:]), None)
        return spread(narrow, self.side_out)


@torch.no_grad()
def inference_form(model: nn.Module) -> nn.Module:
    """A copy of `model` whose quantized layers are InferenceLayers; its outputs have the same bits.

    Raises:
        QartsrError: a kind of layer that has no such form (only plain, LoRA and QArtSR layers have).
    """
    exported = copy.deepcopy(model)
    for name, layer in list(exported.named_modules()):
        if not isinstance(layer, QuantLayer) or layer.weight_quantizer is None:
            continue
        if not layer.exportable:
            raise QartsrError(f"{name}: layers of {type(layer).__name__} have no inference form")
        parent, _, child = name.rpartition(".")
        setattr(exported.get_submodule(parent), child, InferenceLayer(layer))
    return exported.eval()
