"""Overrides of a profile's settings: each is of the setting's kind, or told in one line before anything is computed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from qartsr_lib.base.errors import QartsrError, did_you_mean

#: Type of a field -> its type in Python, and what it is.
_KINDS = {
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
    "Mapping[str, str | Mapping[str, str]]": (Mapping, "a mapping of names to folders"),
}
#: Whole numbers that may be smaller than 1.
_LEAST = {"component_steps": 0}
#: Lists without which no notebook has anything to do.
_NEVER_EMPTY = ("seeds", "backbones", "timesteps")
#: Lists of bits, or of pairs that end with them.
_BITS = ("bits", "finetune_bits", "ablation_bits", "component_bits", "deployed")
#: Type of a field -> types in one of its items, and what they are.
_ITEMS = {
    "tuple[int, ...]": ((int,), "whole numbers"),
    "tuple[str, ...]": ((str,), "texts"),
    "tuple[tuple[str, int], ...]": ((str, int), "pairs of a text and a whole number"),
    "tuple[tuple[str, str], ...]": ((str, str), "pairs of texts"),
}


def checked(profile, overrides: Mapping[str, object]) -> dict[str, object]:
    """Those of the `overrides` that are not None, as fields of a `Profile`: lists become tuples.

    A QartsrError for an unknown field, or a value of another kind.
    """
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in dataclasses.fields(profile)}
    changes = {}
    for field, value in overrides.items():
        if field == "name" or field not in kinds:
            advice = did_you_mean(field, kinds) or "remove that override"
            raise QartsrError(f"profile {profile.name!r} has no setting {field!r}; {advice}")
        if value is None:
            continue
        named = f"setting {field} of profile {profile.name!r}"
        wanted, text = _KINDS.get(kinds[field], (object, ""))
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise QartsrError(f"{named} is {value!r} and must be {text}")
        if wanted is int and value < (least := _LEAST.get(field, 1)):
            raise QartsrError(f"{named} is {value} and must be at least {least}")
        if kinds[field].startswith("tuple"):
            items = value if isinstance(value, (list, tuple)) else (value,)
            items = tuple(tuple(item) if isinstance(item, list) else item for item in items)
            types, text = _ITEMS.get(kinds[field], (None, ""))
            if types and any(tuple(map(type, i if isinstance(i, tuple) else (i,))) != types for i in items):
                raise QartsrError(f"{named} is {value!r} and must be a list of {text}")
            value = _checked_items(named, field, items)
        changes[field] = value
    return changes


def _checked_items(named: str, field: str, items: tuple) -> tuple:
    if field in _NEVER_EMPTY and not items:
        raise QartsrError(f"{named} is empty; name at least one")
    if field == "seeds" and min(items) < 0:
        raise QartsrError(f"{named} names {min(items)}; choose whole numbers of at least 0")
    if field in _BITS:
        items = tuple(_as_tables_have_them(named, item) for item in items)
    if twice := [item for item, count in Counter(items).items() if count > 1]:
        raise QartsrError(f"{named} names {twice[0]!r} twice; name it once")
    if field == "setting":
        from qartsr_lib.methods.setting import SETTING_OPTIONS  # takes seconds, as it needs PyTorch

        for option, _ in items:
            if option not in SETTING_OPTIONS:
                advice = did_you_mean(option, SETTING_OPTIONS) or f"choose from {', '.join(SETTING_OPTIONS)}"
                raise QartsrError(f"{named} names {option!r}; {advice}")
    return items


def _as_tables_have_them(named: str, item: str | tuple[str, str]) -> str | tuple[str, str]:
    """Bits, or (method, bits), with these as "W4A4"."""
    if isinstance(item, tuple):
        return item[0], _as_tables_have_them(named, item[1])
    from qartsr_lib.quant.scheme import parse_bits  # takes seconds, as it needs PyTorch

    try:
        bits = parse_bits(item)
    except QartsrError as error:
        raise QartsrError(f"{named}: {error}") from error
    if bits.is_full_precision:
        raise QartsrError(f"{named} names {bits}, full precision, which every table has; leave it out")
    return str(bits)
