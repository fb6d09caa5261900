"""rules.toml as objects, and what a check of it is."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry

RULES = Path(__file__).with_name("rules.toml")
#: Lists of these keys belong together; a list anywhere else stands for one check per entry.
WHOLE = ("plus", "minus")


class NoData(QartsrError):
    """What a check needs has not been measured; the text says what is absent."""


@dataclass(frozen=True)
class Finding:
    """What one check found; the first nine fields are columns of the ledger.

    Attributes:
        check, test: what was compared and by which test, for people.
        n: number of pairs (photographs) behind it; 1 for a counted number.
        effect: in the direction that the claim favours, with its 95% interval, if any.
        p: one-sided, not corrected; NaN for a counted or timed number, which has a `checks.margin` instead.
        missing: what has not been measured; nothing else counts then.
        run_ids: of the run records behind it, separated by spaces.
        favours: whether effect and interval speak for the claim, before p is corrected.
    """

    check: str
    test: str
    n: int = 0
    effect: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p: float = math.nan
    missing: str = ""
    run_ids: str = ""
    margin: float = math.nan
    favours: bool = False


#: Name in rules.toml -> function(settings without lists, profile), which raises NoData.
CHECKS: Registry[Callable[[Mapping[str, Any], str], Finding]] = Registry("check", __package__)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        claim, where, paper_evidence: what the paper says, where, and by which figures.
        untestable: why no embedded backbone can decide it; "" where checks can.
        checks: settings of each, with "test", its name in CHECKS.
        reproduced_from, partly_from: shares of the checks that must hold for these verdicts.
        own: whether it is a question of this study, which the paper does not answer; counted apart.
    """

    id: str
    claim: str
    where: str
    paper_evidence: str
    untestable: str
    checks: tuple[Mapping[str, Any], ...]
    reproduced_from: float = 1.0
    partly_from: float = 0.0
    own: bool = False


@dataclass(frozen=True)
class Inconsistency:
    """Two statements of the paper that do not fit each other."""

    where: str
    what: str


@dataclass(frozen=True)
class Rules:
    """All of rules.toml.

    Attributes:
        level: of significance, for corrected p-values.
        min_images: fewer photographs decide nothing.
        datasets: profile -> data sets that checks with dataset = "all" run on.
        changes: (date, what, why) of every change after the rules first met the results of `study`.
    """

    level: float
    min_images: int
    datasets: Mapping[str, Sequence[str]]
    claims: tuple[Claim, ...]
    inconsistencies: tuple[Inconsistency, ...]
    changes: tuple[Mapping[str, str], ...]


def load_rules(path: Path = RULES) -> Rules:
    """Read and check rules.

    Raises:
        QartsrError: not TOML, an absent field, an unknown test, or an id that occurs twice.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(_claim(entry) for entry in found["claim"])
        inconsistencies = tuple(Inconsistency(**entry) for entry in found["inconsistency"])
        fixed = found["level"], found["min_images"], found["datasets"]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise QartsrError(f"{path}: {type(error).__name__}: {error}; see the fields of claims.rules.Claim") from error
    ids = [claim.id for claim in claims]
    if len(set(ids)) != len(ids):
        raise QartsrError(f"{path}: an id occurs twice: {sorted({name for name in ids if ids.count(name) > 1})}")
    return Rules(*fixed, claims, inconsistencies, tuple(found.get("change", ())))


def _claim(entry: dict[str, Any]) -> Claim:
    untestable, checks = entry.pop("untestable", ""), tuple(entry.pop("check", ()))
    if bool(untestable) == bool(checks):
        raise KeyError(f"{entry.get('id')}: give checks, or say why it is untestable")
    for check in checks:
        CHECKS.get(check["test"])
    return Claim(untestable=untestable, checks=checks, **entry)


def expanded(settings: Mapping[str, Any], datasets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One mapping for each combination of what `settings` lists.

    Args:
        datasets: what dataset = "all" lists; "first" is its first.
    """
    settings = dict(settings)
    if "dataset" in settings:
        named = {"all": list(datasets), "first": list(datasets[:1])}
        settings["dataset"] = named.get(settings["dataset"], settings["dataset"])
    lists = {key: value for key, value in settings.items() if isinstance(value, list) and key not in WHOLE}
    for values in itertools.product(*lists.values()):
        yield settings | dict(zip(lists, values, strict=True))
