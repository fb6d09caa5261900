"""Quantized Linear and Conv2d: y = Q_W(W) Q_A(x) + Q_B(B) (QArtSR Eq. 9 without its side branch)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.registry import Registry
from qartsr_lib.quant.bits import FLOAT_BITS
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.states import QuantModule, QuantState


@dataclass(frozen=True)
class LayerConfig:
    """Quantizers of one layer; None leaves that tensor in full precision."""

    weight: QuantizerConfig | None
    activation: QuantizerConfig | None
    bias: QuantizerConfig | None


@dataclass(frozen=True)
class InferenceParts:
    """What a layer computes at inference beside Q_W(folded weight) Q_A(x) + Q_B(B); None for what it lacks.

        y = Q_W(folded weight) Q_A((x - o) / phi) + Q_B(B) + L1 L2 x + W o

    Attributes:
        phi, offset: (c_in,) each, phi and o.
        behind: W o, (c_out,), or (c_out, 1, k, k) per kernel position of a convolution.
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
        side_after_scaling: L2 sees (x - o) / phi instead of x.
    """

    phi: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    behind: torch.Tensor | None = None
    side_out: torch.Tensor | None = None
    side_in: torch.Tensor | None = None
    side_after_scaling: bool = False


class QuantLayer(QuantModule):
    """Common part of QuantLinear and QuantConv2d; mixed in before the float class.

    The weight and bias are the float layer's own parameters, not copies. Under no_grad in eval
    mode the quantized weight is computed once and kept until a parameter, a quantizer, the state
    or the mode changes (in-place edits through `.data` are invisible to this; call `drop_cache`).

    Convolutions pad with true zeros after fake quantization, as the released code of PassionSR and
    EfficientDM does. With a real-valued zero-point the padding is then not on the grid.
    """

    quantizer_type: type[Quantizer] = Quantizer
    input_quantizer_type: type[Quantizer] | None = None
    """Of the input, where it is another than the weight's and the bias's."""
    input_axis: int
    weight: torch.Tensor
    bias: torch.Tensor | None
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    bias_quantizer: Quantizer | None

    @classmethod
    def from_float(cls, layer: nn.Module, config: LayerConfig, name: str, **options) -> QuantLayer:
        """A quantized layer on the parameters of `layer`; weight and bias ranges are set at once.

        Args:
            layer: nn.Linear or nn.Conv2d.
            config: its quantizers.
            name: full name in the network, for messages.
            options: for layer kinds that have some; none here.
        """
        new = cls._empty_like(layer)
        new.weight, new.bias = layer.weight, layer.bias
        new._add_quantizers(config, name, **options)
        new.train(layer.training)
        return new

    @classmethod
    def _empty_like(cls, layer: nn.Module) -> QuantLayer:
        raise NotImplementedError

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        self.name = name
        self._cache = None
        device = self.weight.device

        def build(
            part: QuantizerConfig | None, shape: tuple[int, ...], what: str, kind: type[Quantizer] | None = None
        ) -> Quantizer | None:
            kind = kind or self.quantizer_type
            return None if part is None else kind(part, shape, f"{name} ({what})", device=device)

        self.weight_quantizer = build(config.weight, self.weight.shape, "weight")
        self.bias_quantizer = None if self.bias is None else build(config.bias, self.bias.shape, "bias")
        activation = config.activation
        if activation is not None:
            along_channels = activation.granularity.with_axis(self.input_axis)
            activation = QuantizerConfig(**{**vars(activation), "granularity": along_channels})
        self.input_quantizer = build(activation, self._input_shape(), "activation", self.input_quantizer_type)
        for quantizer, tensor in ((self.weight_quantizer, self.weight), (self.bias_quantizer, self.bias)):
            if quantizer is not None:
                quantizer.set_range_from(tensor)

    def _input_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is not QuantState.QUANTIZED:
            if self.state is QuantState.CALIBRATING and self.input_quantizer is not None:
                self.input_quantizer.observe(x)
            return super().forward(x)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return self._operate(x, *self.quantized_parameters())

    def quantized_parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Q_W(W) and Q_B(B); kept between calls where nothing can have changed."""
        if self.training or torch.is_grad_enabled():
            self._cache = None
            return self._quantize_parameters()
        key = self._cache_key()
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._quantize_parameters())
        return self._cache[1]

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
        bias = self.bias if self.bias_quantizer is None else self.bias_quantizer(self.bias)
        return weight, bias

    def _cache_key(self) -> tuple:
        """Changes whenever a tensor of this layer is replaced or edited in place."""
        tensors = (*self.parameters(), *self.buffers())
        return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)

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

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.drop_cache()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}  # copies do not carry a second weight

    def activation_quantizers(self) -> list[Quantizer]:
        return [] if self.input_quantizer is None else [self.input_quantizer]

    @property
    def side_branch_bits(self) -> int:
        """Stored bits of what a layer kind adds to the weight (low-rank branches, phi); none here."""
        return 0

    @property
    def side_branch_macs(self) -> int:
        """Multiply-adds per output position of what a layer kind computes beside the quantized product; none here."""
        return 0

    @property
    def stored_weight_bits(self) -> int:
        """Stored bits of the weight: codes, all scales and zero-points of weight and input, side branch."""
        quantizers = [q for q in (self.weight_quantizer, self.input_quantizer) if q is not None]
        scales = sum(quantizer.stored_parameter_bits for quantizer in quantizers)
        return self.weight.numel() * bits_of(self.weight_quantizer) + scales + self.side_branch_bits

    @property
    def stored_bias_bits(self) -> int:
        """Stored bits of the bias with its scale and zero-point; 0 without bias."""
        if self.bias is None:
            return 0
        scales = 0 if self.bias_quantizer is None else self.bias_quantizer.stored_parameter_bits
        return self.bias.numel() * bits_of(self.bias_quantizer) + scales


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with quantizers; (..., c_in) -> (..., c_out)."""

    input_axis = -1

    @classmethod
    def _empty_like(cls, layer: nn.Linear) -> QuantLinear:
        return cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")

    def _input_shape(self) -> tuple[int, ...]:
        return (1, self.in_features)

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with quantizers; (N, c_in, H, W) -> (N, c_out, H', W')."""

    input_axis = -3

    @classmethod
    def _empty_like(cls, layer: nn.Conv2d) -> QuantConv2d:
        geometry = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
        has_bias = layer.bias is not None
        return cls(layer.in_channels, layer.out_channels, layer.kernel_size, bias=has_bias, device="meta", **geometry)

    def _input_shape(self) -> tuple[int, ...]:
        return (1, self.in_channels, 1, 1)

    def _operate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._conv_forward(x, weight, bias)


def bits_of(quantizer: Quantizer | None) -> int:
    """Bit width of a quantizer; 32 for none."""
    return FLOAT_BITS if quantizer is None else quantizer.config.bits


LAYER_KINDS: Registry[dict[type[nn.Module], type[QuantLayer]]] = Registry("layer kind")
"""Float class -> quantized class, by name; QuantScheme.layer_kind chooses. Methods register their own."""

LAYER_KINDS.register("plain")({nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d})
