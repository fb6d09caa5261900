"""What a check is: a function from its settings in rules.toml and a profile to what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry


class NoData(QartsrError):
    """What a check needs has not been measured; the text says what is absent."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: what was compared, for people.
        test: the test used, for people.
        n: number of pairs (photographs) behind it; 1 for a counted number.
        effect: in the direction that the claim favours; units of `what`.
        low, high: of its 95% interval; NaN where there is none.
        p: one-sided, not corrected; NaN for a counted or timed number, which is compared as it is.
        margin: how far such a number lies within its bounds, see `margin`; NaN where there is a p.
        favours: whether effect and interval speak for the claim, before p is corrected.
        run_ids: of the run records behind it.
        missing: what has not been measured; nothing else counts then.
    """

    what: str
    test: str
    n: int = 0
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    margin: float = math.nan
    favours: bool = False
    run_ids: tuple[str, ...] = ()
    missing: str = ""


def margin(value: float, above: float = -math.inf, below: float = math.inf) -> float:
    """Distance of `value` from its nearer bound, as a share of that bound (of 1 where it is 0); negative outside."""
    distances = [(value - above, above), (below - value, below)]
    return min(distance / (abs(bound) or 1.0) for distance, bound in distances if math.isfinite(bound))


def measured_file(profile: str, name: str) -> Path:
    """results/<profile>/<name>, which may lie deeper.

    Raises:
        NoData: it is not there yet.
    """
    path = paths.results_dir(profile) / name
    if not path.is_file():
        raise NoData(f"results/{profile}/{name} is not there yet")
    return path


#: Settings (no lists left in them), profile -> finding. Raises NoData.
Check = Callable[[Mapping[str, Any], str], Finding]

CHECKS: Registry[Check] = Registry("check", __package__)
