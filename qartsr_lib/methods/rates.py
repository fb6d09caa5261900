"""The factor on each trained method's published learning rates: the same tries for all, chosen on BSDS500/val."""

from __future__ import annotations

import json
from pathlib import Path

CHOSEN = Path(__file__).with_name("rates.json")


def chosen_rate(method: str) -> float:
    """Factor for `method` (rates.json, written by `python -m qartsr_lib.tries`); 1 for one that was not tried."""
    return float(json.loads(CHOSEN.read_text(encoding="utf-8")).get(method, 1.0))
