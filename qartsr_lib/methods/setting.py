"""What all methods of a comparison share beside bits and images: the layers kept at 8 bits, ranges, zero-points.

The paper says nothing about any of them, and they move results by more than most methods do; so they are factors of the
study. Every method takes them as options, with the defaults of `Setting`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry, outside
from qartsr_lib.quant.scheme import SHARED_SETTING, QuantScheme, variant

#: Name -> function(backbone) -> fnmatch patterns of the full names of the layers that stay at 8 bits.
EIGHT_BIT_LISTS: Registry[Callable[[nn.Module], tuple[str, ...]]] = Registry("list of 8-bit layers")
#: Written by notebook 13: backbone -> names of its sensitive layers.
SENSITIVE = Path(__file__).with_name("sensitive.json")

FIRST_AND_LAST = ("vae.encoder.conv_in", "vae.decoder.conv_out")
IDENTITY_PATH = (
    "vae.encoder.conv_in",
    "vae.decoder.conv_in",
    "unet.conv_in",
    "vae.*samplers.*",
    "vae.*conv_shortcut",
)
"""Convolutions with no normalization before them, so that their input has the range of a picture or of a sum."""


@EIGHT_BIT_LISTS.register("passionsr")
def passionsr(backbone: nn.Module) -> tuple[str, ...]:
    """The list of PassionSR's released code, as the backbone names those layers."""
    return backbone.eight_bit_layers


@EIGHT_BIT_LISTS.register("first-last")
def first_last(backbone: nn.Module) -> tuple[str, ...]:
    """The network's first and last layer, as LSQ (arXiv:1902.08153) and most work on classifiers have it."""
    return FIRST_AND_LAST


@EIGHT_BIT_LISTS.register("identity-path")
def identity_path(backbone: nn.Module) -> tuple[str, ...]:
    """PassionSR's list and IDENTITY_PATH."""
    return (*backbone.eight_bit_layers, *IDENTITY_PATH)


@EIGHT_BIT_LISTS.register("sensitive")
def sensitive(backbone: nn.Module) -> tuple[str, ...]:
    """The layers measured to be sensitive, at no more stored bits than "identity-path"; QartsrError if not measured."""
    return sensitive_layers(backbone.name)


def sensitive_layers(name: str) -> tuple[str, ...]:
    """Of the backbone called `name`; see `sensitive`."""
    known = json.loads(SENSITIVE.read_text(encoding="utf-8")) if SENSITIVE.exists() else {}
    if name not in known:
        raise QartsrError(
            f"eight_bit=sensitive: the layers of {name!r} were not measured (notebook 13 does it for "
            f"{', '.join(known) or 'no backbone yet'}); choose another list"
        )
    return tuple(known[name])


@dataclass(frozen=True)
class Setting:
    """The factors; a QartsrError for an unknown value.

    Attributes:
        eight_bit: name in EIGHT_BIT_LISTS.
        ranges: of static activations, name in quant.observers.OBSERVERS.
        zero_point: "real" (the paper's Eq. 3) or "integer", which released codes round to.
    """

    eight_bit: str = "passionsr"
    ranges: str = "min-max"
    zero_point: str = "real"

    def __post_init__(self) -> None:
        EIGHT_BIT_LISTS.get(self.eight_bit)
        variant(SHARED_SETTING, ranges=self.ranges, zero_point=self.zero_point)

    def scheme(self, scheme: QuantScheme, backbone: nn.Module, bits: str) -> QuantScheme:
        """A method's `scheme` for `backbone` at `bits`; a QartsrError where it decides one of these factors itself."""
        for name in ("ranges", "zero_point", "eight_bit_layers"):
            if (own := getattr(scheme, name)) != getattr(SHARED_SETTING, name):
                raise QartsrError(
                    f"a method's setting has {name} {own!r}, which all methods share; leave it out, and give it to "
                    "build or to a profile's setting (ranges, zero_point, eight_bit)"
                )
        chosen = variant(scheme, ranges=self.ranges, zero_point=self.zero_point)
        return chosen.at(bits, EIGHT_BIT_LISTS.get(self.eight_bit)(backbone))

    @property
    def label(self) -> str:
        """Name in tables: the list, the range rule, and the zero-points where they are not real."""
        rounded = [] if self.zero_point == DEFAULT.zero_point else [f"{self.zero_point} zero-points"]
        return ", ".join((self.eight_bit, self.ranges, *rounded))

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of what differs from the defaults: options of `Method.build`."""
        return tuple((name, value) for name, value in vars(self).items() if value != getattr(Setting, name))


DEFAULT = Setting()
#: The best on BSDS500/val (notebook 13).
BEST = Setting("identity-path", "least-squares")
SETTING_OPTIONS = tuple(field.name for field in fields(Setting))


def measured_layers(options: Iterable[tuple[str, object]], name: str) -> dict[str, tuple[str, ...]]:
    """What `options` alone do not tell of a model of the backbone called `name`: the list that notebook 13 writes."""
    return {"sensitive_layers": sensitive_layers(name)} if ("eight_bit", "sensitive") in options else {}


def model_facts(method: str, backbone: str, options: Iterable[tuple[str, object]]) -> dict[str, object]:
    """What keys of a model's results hold beside its names: `measured_layers`, and what others registered of them."""
    return measured_layers(options, backbone) | outside(method, backbone, *(value for _, value in options))


def split_options(options: Mapping[str, object]) -> tuple[Setting, dict[str, object]]:
    """The Setting among `options` of a method, and the rest."""
    own = {name: value for name, value in options.items() if name not in SETTING_OPTIONS}
    return replace(DEFAULT, **{name: options[name] for name in options if name in SETTING_OPTIONS}), own
