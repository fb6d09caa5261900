"""The factor on each trained method's published learning rates: the same tries for all, chosen on BSDS500/val."""

from __future__ import annotations

import json
from pathlib import Path

CHOSEN = Path(__file__).with_name("rates.json")
#: Bit widths that were not tried themselves: the best factor over those that were.
OTHERS = "others"


def chosen_rate(method: str, bits: str) -> float:
    """Factor for `method` at `bits` (rates.json, written by `python -m qartsr_lib.tries`); 1 for one not tried."""
    factors = json.loads(CHOSEN.read_text(encoding="utf-8")).get(method, {})
    return float(factors.get(bits, factors.get(OTHERS, 1.0)))
