"""The rules (rules.toml), and from them and result files to verdicts."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry
from qartsr_lib.study import results
from qartsr_lib.study.stats import holm

RULES = Path(__file__).with_name("rules.toml")
#: Lists of these keys belong together; a list anywhere else stands for one check per entry.
WHOLE = ("plus", "minus")
REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "partly", "not reproduced", "not testable here"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTABLE)
#: Who asks: the paper claims it, or it is a question of this study. Values of the column "asked_by".
PAPER, STUDY = "paper", "study"
COLUMNS = (
    *("id", "claim", "where", "asked_by", "paper_evidence", "ours", "checks", "measured", "test", "n"),
    *("effect", "ci_low", "ci_high", "p_corrected", "verdict", "run_ids"),
)
CHECK_COLUMNS = (
    *("id", "check", "test", "n", "effect", "ci_low", "ci_high"),
    *("p", "p_corrected", "holds", "missing", "run_ids"),
)


class NoData(QartsrError):
    """What a check needs has not been measured; the text says what is absent."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str  # what was compared, for people
    test: str  # by which test
    n: int = 0  # number of pairs (photographs) behind it; 1 for a counted number
    effect: float = math.nan  # in the direction that the claim favours, with its 95% interval, if any
    ci_low: float = math.nan
    ci_high: float = math.nan
    p: float = math.nan  # one-sided, not corrected; NaN for a counted or timed number, which has a margin instead
    missing: str = ""  # what has not been measured; nothing else counts then
    run_ids: str = ""  # of the run records behind it, separated by spaces
    margin: float = math.nan  # see `checks.margin`
    favours: bool = False  # whether effect and interval speak for the claim, before p is corrected


#: Name in rules.toml -> function(settings without lists, profile), which raises NoData.
CHECKS: Registry[Callable[[Mapping[str, Any], str], Finding]] = Registry("check", __package__)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper."""

    id: str
    claim: str  # what the paper says, where, and by which figures
    where: str
    paper_evidence: str
    untestable: str  # why no embedded backbone can decide it; "" where checks can
    checks: tuple[Mapping[str, Any], ...]  # settings of each, with "test", its name in CHECKS
    reproduced_from: float = 1.0  # shares of the checks that must hold for these verdicts
    partly_from: float = 0.0
    own: bool = False  # a question of this study, which the paper does not answer; counted apart


@dataclass(frozen=True)
class Rules:
    """All of rules.toml."""

    level: float  # of significance, for corrected p-values
    min_images: int  # fewer photographs decide nothing
    datasets: Mapping[str, Sequence[str]]  # profile -> data sets that checks with dataset = "all" run on
    claims: tuple[Claim, ...]
    inconsistencies: tuple[Mapping[str, str], ...]  # (where, what) of statements of the paper that do not fit
    changes: tuple[Mapping[str, str], ...]  # (date, what, why) after the rules first met the results of `study`


def load_rules(path: Path = RULES) -> Rules:
    """Read and check rules; a QartsrError for an absent field, an unknown test, or an id that occurs twice."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(_claim(entry, found.get("lists", {})) for entry in found["claim"])
        fixed = found["level"], found["min_images"], found["datasets"], claims, tuple(found["inconsistency"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise QartsrError(f"{path}: {type(error).__name__}: {error}; see the fields of claims.ledger.Claim") from error
    twice = [name for name, number in Counter(claim.id for claim in claims).items() if number > 1]
    if twice:
        raise QartsrError(f"{path}: an id occurs twice: {sorted(twice)}")
    return Rules(*fixed, tuple(found.get("change", ())))


def _claim(entry: dict[str, Any], lists: Mapping[str, list]) -> Claim:
    untestable, checks = entry.pop("untestable", ""), entry.pop("check", ())
    checks = tuple({key: _spelled_out(value, lists) for key, value in check.items()} for check in checks)
    if bool(untestable) == bool(checks):
        raise KeyError(f"{entry.get('id')}: give checks, or say why it is untestable")
    for check in checks:
        CHECKS.get(check["test"])
    return Claim(untestable=untestable, checks=checks, **entry)


def _spelled_out(setting: Any, lists: Mapping[str, list]) -> Any:
    """A setting with the values of lists[name] in the place of "@name", which it is or has among its values."""
    if isinstance(setting, list):
        parts = [_spelled_out(one, lists) for one in setting]
        return [value for part in parts for value in (part if isinstance(part, list) else [part])]
    return lists[setting[1:]] if isinstance(setting, str) and setting.startswith("@") else setting


def expanded(settings: Mapping[str, Any], datasets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One mapping for each combination of what `settings` lists; dataset "all" lists `datasets`, "first" its first."""
    named = {"all": list(datasets), "first": list(datasets[:1])}
    settings = {key: named.get(value, value) if key == "dataset" else value for key, value in settings.items()}
    lists = {key: value for key, value in settings.items() if isinstance(value, list) and key not in WHOLE}
    for values in itertools.product(*lists.values()):
        yield settings | dict(zip(lists, values, strict=True))


@dataclass(frozen=True)
class Ledger:
    """Verdicts on a profile's results.

    n, effect, interval and p of a claim are of the check that speaks least for it; "checks" counts all checks,
    "measured" those with data, on which the verdict rests.
    """

    profile: str
    claims: pd.DataFrame  # one row per claim, COLUMNS
    checks: pd.DataFrame  # one row per check, CHECK_COLUMNS

    def write(self) -> None:
        """results/<profile>/claims.csv and claims_checks.csv, replaced as a whole."""
        results.write_table(self.profile, "claims", self.claims, by=(), front=COLUMNS)
        results.write_table(self.profile, "claims_checks", self.checks, by=(), front=CHECK_COLUMNS)


def make_ledger(rules: Rules, profile: str) -> Ledger:
    """Run every check; a claim is reproduced where all its checks (or the share it asks for) hold.

    A check holds where effect and interval speak for the claim and its p-value is below `rules.level`, corrected by
    Holm over the checks of the paper's claims, or over those of the study's own questions, that have one. Checks
    without results, or on too few photographs, are left out and told; a claim that has no other is not testable.
    """
    found = [{"id": claim.id, **asdict(one)} for claim in rules.claims for one in _findings(claim, rules, profile)]
    checks = pd.DataFrame(found, columns=["id", *(field.name for field in fields(Finding))])
    own = checks["id"].isin({claim.id for claim in rules.claims if claim.own})
    families = [_with_power(family, rules.level) for _, family in checks.groupby(own)]
    checks = pd.concat([family.assign(p_corrected=holm(family["p"])) for family in families]).sort_index()
    speaks = (checks["missing"] == "") & checks["favours"].astype(bool)
    checks["holds"] = speaks & ~(checks["p_corrected"] >= rules.level)
    claims = [_claim_row(claim, checks[checks["id"] == claim.id]) for claim in rules.claims]
    return Ledger(profile, pd.DataFrame(claims, columns=[*COLUMNS]), checks[[*CHECK_COLUMNS]])


def _findings(claim: Claim, rules: Rules, profile: str) -> Iterable[Finding]:
    datasets = rules.datasets.get(profile, ())
    for settings in itertools.chain.from_iterable(expanded(check, datasets) for check in claim.checks):
        try:
            finding = CHECKS.get(settings["test"])(settings, profile)
        except NoData as error:
            asked = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "test")
            finding = Finding(asked, settings["test"], missing=str(error))
        if not math.isnan(finding.p) and finding.n < rules.min_images:
            reason = f"{finding.check}: {finding.n} photographs, fewer than {rules.min_images}"
            finding = replace(finding, p=math.nan, missing=reason)
        yield finding


def _with_power(checks: pd.DataFrame, level: float) -> pd.DataFrame:
    """Checks on so few photographs that none could hold among so many, whatever its effect, decide nothing.

    The signed-rank test of n pairs has no smaller one-sided p than 2^-n, which Holm's correction multiplies by the
    number of checks whose p is not smaller.
    """
    checks = checks.copy()
    while True:
        tested, least = checks["p"].notna(), 0.5 ** checks["n"]
        smaller = np.searchsorted(np.sort(checks["p"].dropna()), least)
        powerless = tested & (least * (tested.sum() - smaller) >= level)
        if not powerless.any():
            return checks
        fewest = powerless & (checks["n"] == checks.loc[powerless, "n"].min())
        reason = f" photographs cannot decide among {tested.sum()} checks"
        checks.loc[fewest, "missing"] = checks["check"] + ": " + checks["n"].astype(str) + reason
        checks.loc[fewest, "p"] = math.nan


def _claim_row(claim: Claim, checks: pd.DataFrame) -> dict[str, object]:
    tested = checks[checks["missing"] == ""]
    row = {name: getattr(claim, name) for name in ("id", "claim", "where", "paper_evidence")}
    row |= {"asked_by": STUDY if claim.own else PAPER, "checks": len(checks), "measured": len(tested)}
    if tested.empty:
        missing = checks["missing"].unique()
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        ours = claim.untestable or f"not measured: {missing[0]}{more}"
        return row | {"ours": ours, "test": "none", "n": 0, "verdict": NOT_TESTABLE, "run_ids": ""}
    # The check that speaks least for the claim: by its p-value, or where it has none by its margin.
    weakest = max(
        tested.fillna({"p": 0.0, "margin": 0.0}).itertuples(),
        key=lambda check: (not check.holds, check.p, -check.margin, -clearness(check)),
    )
    ours = f"{tested['holds'].sum()} of {len(tested)} checks hold; weakest: {weakest.check}"
    if len(tested) < len(checks):
        ours += f"; {len(checks) - len(tested)} more could not be measured here"
    share, verdict = tested["holds"].mean(), NOT_REPRODUCED
    if share >= claim.reproduced_from:
        verdict = REPRODUCED
    elif share and share >= claim.partly_from:
        verdict = PARTLY
    return row | {
        "ours": ours,
        "test": "; ".join(tested["test"].unique()),
        **{name: getattr(weakest, name) for name in ("n", "effect", "ci_low", "ci_high", "p_corrected")},
        "verdict": verdict,
        "run_ids": " ".join(dict.fromkeys(" ".join(tested["run_ids"]).split())),
    }


def clearness(check) -> float:
    """Effect over the width of its interval, 0 without one: orders checks of equal p, whatever their units."""
    width = check.ci_high - check.ci_low
    return check.effect / width if width > 0 else 0.0


def verdict_text(verdict: str, measured: int, checks: int) -> str:
    """A verdict as people read it: where checks have no data, with how many it rests on."""
    return verdict if measured == checks else f"{verdict} ({measured} of {checks} checks measured)"


def count_verdicts(rows: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, str]]:
    """(verdict, measured checks, checks) of claims -> (verdict, how many, for how many of them data is missing).

    In the order of VERDICTS, then others; the last is "" where none is missing.
    """
    rows, found = list(rows), []
    for verdict in dict.fromkeys([*VERDICTS, *(name for name, *_ in rows)]):
        part = [measured < checks for name, measured, checks in rows if name == verdict]
        words = "not measured yet" if verdict == NOT_TESTABLE else "on part of the checks"
        if part:
            found.append((verdict, len(part), f"{sum(part)} {words}" if any(part) else ""))
    return found
