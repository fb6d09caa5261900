"""Quantized Linear and Conv2d: y = Q_W(W) Q_A(x) + Q_B(B) (QArtSR Eq. 9 without its side branch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.registry import Registry
from qartsr_lib.quant.quantizers import QPARAM_BITS, Quantizer, QuantizerConfig, check_seen
from qartsr_lib.quant.states import QuantModule, QuantState


@dataclass(frozen=True)
class LayerConfig:
    """Quantizers of one layer; None leaves that tensor in full precision."""

    weight: QuantizerConfig | None
    activation: QuantizerConfig | None
    bias: QuantizerConfig | None


@dataclass(frozen=True)
class InferenceParts:
    """What a layer computes at inference beside Q_W(folded weight) Q_A(x) + Q_B(B); None for what it lacks:

        y = Q_W(folded weight) Q_A(H (x - o) / phi) + Q_B(B) + L1 L2 x + W o

    Attributes:
        phi, offset: (c_in,) each, phi and o.
        behind: W o, (c_out,), or (c_out, 1, k, k) per kernel position of a convolution.
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
        side_after_scaling: L2 sees (x - o) / phi instead of x.
        signs, rotation: those of H, (c_in,), and the size of its blocks, see quant.rotation; 0 without H.
    """

    phi: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    behind: torch.Tensor | None = None
    side_out: torch.Tensor | None = None
    side_in: torch.Tensor | None = None
    side_after_scaling: bool = False
    signs: torch.Tensor | None = None
    rotation: int = 0


class QuantLayer(QuantModule):
    """Common part of QuantLinear and QuantConv2d; mixed in before the float class.

    Weight and bias are the float layer's own parameters, not copies. Under no_grad in eval mode the quantized weight
    is computed once and kept until a parameter, a quantizer, the state or the mode changes (in-place edits through
    `.data` are invisible to this; call `drop_cache`). Convolutions pad with true zeros after fake quantization, as the
    released code of PassionSR and EfficientDM does; with a real-valued zero-point these are not on the grid.
    """

    quantizer_type: type[Quantizer] = Quantizer
    input_quantizer_type: type[Quantizer] | None = None
    """Of the input, where it is another than the weight's and the bias's."""
    input_axis: int
    arguments: tuple[str, ...]
    """Attributes of the float layer that its constructor takes, beside `bias`."""

    @classmethod
    def from_float(cls, layer: nn.Module, config: LayerConfig, name: str, **options) -> QuantLayer:
        """A quantized layer on the parameters of a Linear or Conv2d; weight and bias ranges are set at once.

        `name`, the full one in the network, is for messages; `options` are for layer kinds that have some.
        """
        for what, parameter in layer.named_parameters(recurse=False):
            check_seen(f"{name} ({what})", parameter)
        arguments = {argument: getattr(layer, argument) for argument in cls.arguments}
        new = cls(**arguments, bias=layer.bias is not None, device="meta")
        new.weight, new.bias = layer.weight, layer.bias
        new._add_quantizers(config, name, **options)
        new.train(layer.training)
        return new

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        self.name, self._cache = name, None

        def build(part: QuantizerConfig | None, shape: tuple[int, ...], what: str, kind: type) -> Quantizer | None:
            return None if part is None else kind(part, shape, f"{name} ({what})", device=self.weight.device)

        kind, activation = self.quantizer_type, config.activation
        self.weight_quantizer = build(config.weight, self.weight.shape, "weight", kind)
        self.bias_quantizer = None if self.bias is None else build(config.bias, self.bias.shape, "bias", kind)
        if activation is not None:
            activation = replace(activation, granularity=activation.granularity.with_axis(self.input_axis))
        channels = self.weight.shape[1] * getattr(self, "groups", 1)
        input_shape = (1, channels, *[1] * (self.weight.ndim - 2))
        self.input_quantizer = build(activation, input_shape, "activation", self.input_quantizer_type or kind)
        for quantizer, tensor in ((self.weight_quantizer, self.weight), (self.bias_quantizer, self.bias)):
            if quantizer is not None:
                quantizer.set_range_from(tensor)

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is not QuantState.QUANTIZED:
            if self.state is QuantState.CALIBRATING and self.input_quantizer is not None:
                self.input_quantizer.observe(x)
            return super().forward(x)
        return self._operate(self.quantized_input(x), *self.quantized_parameters())

    def shares_ranges(self) -> bool:
        """Not where `forward`, which shows the input to its quantizer, is another class's either."""
        return type(self).forward is QuantLayer.forward and super().shares_ranges()

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Q_A(x)."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def quantized_parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Q_W(W) and Q_B(B); kept between calls where nothing can have changed."""
        key = None if self.training or torch.is_grad_enabled() else self._key()
        if key is None:
            self._cache = None
            return self._quantize_parameters()
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._quantize_parameters())
        return self._cache[1]

    def _key(self) -> tuple[tuple[int, int], ...] | None:
        """Another one where a tensor was replaced, or edited in place; None where edits are not counted."""
        tensors = (*self.parameters(), *self.buffers())
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)

    def folded_weight(self) -> torch.Tensor:
        """What Q_W sees, like W: W itself here."""
        return self.weight

    def inference_parts(self) -> InferenceParts:
        """What `forward` computes beside the plain quantized product; a layer kind that adds something says it here."""
        return InferenceParts()

    def _quantize_parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = self.folded_weight()
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return weight, self.bias if self.bias_quantizer is None else self.bias_quantizer(self.bias)

    def drop_cache(self) -> None:
        """Forget the quantized weight."""
        self._cache = None

    def set_state(self, state: QuantState) -> None:
        self.drop_cache()
        super().set_state(state)

    def train(self, mode: bool = True):
        self.drop_cache()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self.drop_cache()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}  # copies do not carry a second weight

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of all quantizers."""
        quantizers = (self.weight_quantizer, self.input_quantizer, self.bias_quantizer)
        return [p for quantizer in quantizers if quantizer is not None for p in quantizer.parameters()]

    def activation_quantizers(self) -> list[Quantizer]:
        return [] if self.input_quantizer is None else [self.input_quantizer]

    @property
    @torch.no_grad()
    def side_branch_bits(self) -> int:
        """Stored bits of what a layer kind adds to the weight (low-rank branches, phi, ...), 16 per number."""
        parts = vars(self.inference_parts()).values()
        return QPARAM_BITS * sum(part.numel() for part in parts if isinstance(part, torch.Tensor))

    @property
    def side_branch_macs(self) -> int:
        """Multiply-adds per output position of L1 L2."""
        parts = self.inference_parts()
        return 0 if parts.side_in is None else parts.side_in.numel() + parts.side_out.numel()


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with quantizers; (..., c_in) -> (..., c_out)."""

    input_axis = -1
    arguments = ("in_features", "out_features")

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with quantizers; (N, c_in, H, W) -> (N, c_out, H', W')."""

    input_axis = -3
    arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    arguments += ("padding_mode",)

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._conv_forward(x, weight, bias)


LAYER_KINDS: Registry[dict[type[nn.Module], type[QuantLayer]]] = Registry("layer kind")
"""Float class -> quantized class, by name; QuantScheme.layer_kind chooses. Methods register their own."""

LAYER_KINDS.register("plain")({nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d})


def spread(narrow: torch.Tensor, side_out: torch.Tensor) -> torch.Tensor:
    """L1 of a side branch at every position: (N, r, H, W) -> (N, c_out, H, W), `side_out` being L1 (c_out, r)."""
    weight = side_out[:, :, None, None]
    # A single channel is multiplied, as torch has no fast 1 x 1 convolution for it. A matrix product would be fast for
    # all ranks, but its bits depend on where the tensors happen to lie in memory.
    return narrow * weight[:, 0] if side_out.shape[1] == 1 else F.conv2d(narrow, weight)


def replace_layers(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool], convert: Callable[[str, nn.Module], nn.Module]
) -> int:
    """Put `convert(name, layer)` in the place of every chosen layer, in place; returns how many were converted.

    All are chosen before the first is converted. One registered under several names is converted once, under the first
    that is chosen, and stays one.
    """
    places = [
        (parent, key, f"{parent_name}.{key}" if parent_name else key, layer)
        for parent_name, parent in model.named_modules()
        for key, layer in parent._modules.items()
        if layer is not None
    ]
    found: dict[int, tuple[str, nn.Module]] = {}
    for _, _, name, layer in places:
        if chosen(name, layer):
            found.setdefault(id(layer), (name, layer))
    converted = {number: convert(*place) for number, place in found.items()}
    for parent, key, _, layer in places:
        if id(layer) in converted:
            setattr(parent, key, converted[id(layer)])
    return len(converted)
