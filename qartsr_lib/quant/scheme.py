"""The quantization scheme: which tensor of which layer gets how many bits, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.granularity import Granularity, PerChannel, PerTensor, granularity_from_dict
from qartsr_lib.quant.layers import LayerConfig
from qartsr_lib.quant.observers import OBSERVERS
from qartsr_lib.quant.quantizers import QuantizerConfig

FLOAT_BITS = 32
"""The width that means "not quantized" (the full-precision reference is float32)."""
EXCEPTION_BITS = 8


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations, 2 to 8 each, or 32 for float32; W4A4 in words. QartsrError for others."""

    w: int
    a: int

    def __post_init__(self) -> None:
        if not all(width == FLOAT_BITS or 2 <= width <= 8 for width in (self.w, self.a)):
            raise QartsrError(f"bits '{self}': each width must be 2 to 8, or 32 for full precision")

    @property
    def is_full_precision(self) -> bool:
        """True for W32A32."""
        return self.w == self.a == FLOAT_BITS

    def __str__(self) -> str:
        return f"W{self.w}A{self.a}"


def parse_bits(text: str | Bits) -> Bits:
    """Bits(4, 4) from "W4A4"; a Bits passes through. QartsrError for another form or a width that Bits refuses."""
    if isinstance(text, Bits):
        return text
    match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", str(text).strip())
    if match is None:
        raise QartsrError(f"bits {str(text)!r}: write weights and activations as in W4A4 (2 to 8, or W32A32)")
    return Bits(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class QuantScheme:
    """A complete, hashable description of a quantized network; SHARED_SETTING is the study's.

    Attributes:
        bits: widths of all layers that are no exception; W32A32 quantizes nothing.
        eight_bit_layers: fnmatch patterns of full layer names kept at W8A8.
        weight_granularity, weight_symmetric: quantizer of the weights, ranges from their min/max.
        activation_granularity, activation_symmetric: static quantizer of every layer's input.
        bias_bits: of the per-tensor asymmetric bias quantizer; "w" for the layer's weight bits (as PassionSR's released
            code does), None for a float bias. Float weights keep their bias float.
        attention_bits: of q, k, softmax and v in the attention products, per tensor and asymmetric; "a" for the
            activation bits, None for float products.
        attention_modules: fnmatch patterns of the attention modules that attention_bits concerns; PassionSR's code
            quantizes the products of the UNet and never those of the VAE.
        ranges: range rule of the activations (observers.OBSERVERS).
        zero_point: "real" (the paper's Eq. 3) or "integer" (rounded, range including 0).
        narrow_range: of symmetric codes, which then are as many below as above zero.
        layer_kind: entry of layers.LAYER_KINDS; "plain" has no side branch.
        layer_options: (name, value) pairs for that kind.
    """

    bits: Bits = Bits(FLOAT_BITS, FLOAT_BITS)
    eight_bit_layers: tuple[str, ...] = ()
    weight_granularity: Granularity = PerChannel()
    weight_symmetric: bool = False
    activation_granularity: Granularity = PerTensor()
    activation_symmetric: bool = False
    bias_bits: int | str | None = 8
    attention_bits: int | str | None = None
    attention_modules: tuple[str, ...] = ("unet.*",)
    ranges: str = "min-max"
    zero_point: str = "real"
    narrow_range: bool = False
    layer_kind: str = "plain"
    layer_options: tuple[tuple[str, int | float | str | bool], ...] = ()

    def __post_init__(self) -> None:
        if self.zero_point not in ("real", "integer"):
            raise QartsrError(f"option zero_point={self.zero_point!r}: choose 'real' or 'integer'")
        for option, same_as in (("bias_bits", "w"), ("attention_bits", "a")):
            value = getattr(self, option)
            is_width = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8
            if not (value is None or value == same_as or is_width):
                known = f"2 to 8, {same_as!r} (same as {same_as}) or 'none'"
                raise QartsrError(f"option {option}={value!r}: choose {known}")

    def at(self, bits: str | Bits, eight_bit_layers: Sequence[str] = ()) -> QuantScheme:
        """This scheme at other bit widths, with a backbone's 8-bit exceptions."""
        return replace(self, bits=parse_bits(bits), eight_bit_layers=tuple(eight_bit_layers))

    def bits_for(self, layer: str) -> Bits:
        """Bit widths of the layer with that full name."""
        if not matches(layer, self.eight_bit_layers):
            return self.bits
        # What is not quantized at all stays so in the exceptions.
        return Bits(*(width if width == FLOAT_BITS else EXCEPTION_BITS for width in (self.bits.w, self.bits.a)))

    def layer_config(self, layer: str) -> LayerConfig:
        """Quantizers of the layer with that full name."""
        bits = self.bits_for(layer)
        bias_bits = bits.w if self.bias_bits == "w" or bits.w == FLOAT_BITS else self.bias_bits
        of_input = {"symmetric": self.activation_symmetric, "ranges": self.ranges}
        return LayerConfig(
            weight=self._config(bits.w, self.weight_granularity, symmetric=self.weight_symmetric),
            activation=self._config(bits.a, self.activation_granularity, **of_input),
            bias=self._config(bias_bits, PerTensor()),
        )

    def attention_bits_for(self, module: str) -> int | None:
        """Width of the attention products of the attention module with that full name; None for float."""
        config = self.attention_config()
        return config.bits if config is not None and matches(module, self.attention_modules) else None

    def attention_config(self) -> QuantizerConfig | None:
        """Quantizer of the attention products, None when they stay in full precision."""
        bits = self.bits.a if self.attention_bits == "a" else self.attention_bits
        return None if self.bits.is_full_precision else self._config(bits, PerTensor(), ranges=self.ranges)

    def _config(self, bits: int | None, granularity: Granularity, **rest) -> QuantizerConfig | None:
        if bits is None or bits == FLOAT_BITS:
            return None
        narrow = self.narrow_range and rest.get("symmetric", False)
        return QuantizerConfig(bits, granularity, zero_point=self.zero_point, narrow_range=narrow, **rest)

    def to_dict(self) -> dict:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self) | {"bits": str(self.bits)}

    @classmethod
    def from_dict(cls, described: Mapping) -> QuantScheme:
        """Inverse of `to_dict`; KeyError, TypeError or QartsrError when `described` is not one."""
        values = dict(described) | {"bits": parse_bits(described["bits"])}
        for name in ("weight_granularity", "activation_granularity"):
            values[name] = granularity_from_dict(described[name])
        values |= {name: tuple(described[name]) for name in ("eight_bit_layers", "attention_modules")}
        return cls(**values | {"layer_options": tuple((name, value) for name, value in described["layer_options"])})


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the fnmatch `patterns` fits a full name, and none that has a ! in front."""
    fits = [not pattern.startswith("!") for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))]
    return bool(fits) and all(fits)


SHARED_SETTING = QuantScheme()
"""The one setting shared by all methods, fixed before Table 1 was seen (the bits are filled in by `at`).

Weights asymmetric per output channel, activations static asymmetric per tensor, ranges from the min/max over the whole
calibration set, real-valued zero-points (Eq. 3), bias 8 bit per tensor, attention products in full precision; the
backbone names its 8-bit exceptions. A method's plain name means this setting; everything else is a named variant.
"""

KNOBS = ("bias_bits", "attention_bits", "ranges", "zero_point")
"""What the MaxMin ablation varies, each known to move results by many dB."""


def variant(scheme: QuantScheme, **knobs) -> QuantScheme:
    """`scheme` with some KNOBS turned, "none" meaning None; QartsrError for an unknown knob or value."""
    unknown = sorted(set(knobs) - set(KNOBS))
    if unknown:
        raise QartsrError(f"unknown option {unknown[0]!r} (known: {', '.join(KNOBS)})")
    changed = replace(scheme, **{name: None if value == "none" else value for name, value in knobs.items()})
    OBSERVERS.get(changed.ranges)
    return changed
