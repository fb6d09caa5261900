"""Bit widths written the field's way: W4A4 is 4-bit weights and 4-bit activations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qartsr_lib.base.errors import QartsrError

FLOAT_BITS = 32
"""The width that means "not quantized" (the full-precision reference is float32)."""


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations: 2 to 8 each, or 32 for float32.

    Raises:
        QartsrError: another width.
    """

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
    """Bits(4, 4) from "W4A4"; "W32A32" is full precision; a Bits passes through.

    Raises:
        QartsrError: not of the form W<bits>A<bits>, or a width outside 2 to 8 and 32.
    """
    if isinstance(text, Bits):
        return text
    match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", str(text).strip())
    if match is None:
        raise QartsrError(f"bits {str(text)!r}: write weights and activations as in W4A4 (2 to 8, or W32A32)")
    return Bits(int(match[1]), int(match[2]))
