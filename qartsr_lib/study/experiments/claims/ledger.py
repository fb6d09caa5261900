"""From rules and result files to verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from qartsr_lib.study import results
from qartsr_lib.study.experiments.claims.rules import CHECKS, Claim, Finding, NoData, Rules, expanded

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


@dataclass(frozen=True)
class Ledger:
    """Verdicts on a profile's results.

    Attributes:
        claims: one row per claim, COLUMNS. n, effect, interval and p are of the check that speaks least for it;
            "checks" counts all checks, "measured" those with data, on which the verdict rests.
        checks: one row per check, CHECK_COLUMNS.
    """

    profile: str
    claims: pd.DataFrame
    checks: pd.DataFrame

    def write(self) -> None:
        """results/<profile>/claims.csv and claims_checks.csv, replaced as a whole."""
        results.write_measurement(self.profile, "claims", self.claims, by=(), front=COLUMNS)
        results.write_measurement(self.profile, "claims_checks", self.checks, by=(), front=CHECK_COLUMNS)


@dataclass(frozen=True)
class _Judged:
    finding: Finding
    p_corrected: float
    holds: bool

    @property
    def weakness(self) -> tuple[bool, float, float]:
        """Sorts the check that speaks least for a claim last: by its p-value, or where it has none by its margin."""
        p, margin = (0.0 if math.isnan(value) else value for value in (self.finding.p, self.finding.margin))
        return not self.holds, p, -margin


def make_ledger(rules: Rules, profile: str) -> Ledger:
    """Run every check; a claim is reproduced where all its checks (or the share it asks for) hold.

    A check holds where effect and interval speak for the claim and its p-value, corrected by Holm over all
    checks of the ledger that have one, is below `rules.level`. Checks without results are left out and
    told; a claim that has no other is not testable.
    """
    found = [(claim.id, finding) for claim in rules.claims for finding in _findings(claim, rules, profile)]
    judged: dict[str, list[_Judged]] = {claim.id: [] for claim in rules.claims}
    for (name, finding), p in zip(found, holm([finding.p for _, finding in found]), strict=True):
        holds = not finding.missing and finding.favours and (math.isnan(p) or p < rules.level)
        judged[name].append(_Judged(finding, p, holds))
    claims = [_claim_row(claim, judged[claim.id]) for claim in rules.claims]
    checks = [
        asdict(check.finding) | {"id": name, "p_corrected": check.p_corrected, "holds": check.holds}
        for name, entries in judged.items()
        for check in entries
    ]
    return Ledger(profile, pd.DataFrame(claims, columns=[*COLUMNS]), pd.DataFrame(checks, columns=[*CHECK_COLUMNS]))


def _findings(claim: Claim, rules: Rules, profile: str) -> Iterable[Finding]:
    for check in claim.checks:
        for settings in expanded(check, rules.datasets.get(profile, ())):
            try:
                finding = CHECKS.get(settings["test"])(settings, profile)
            except NoData as error:
                asked = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "test")
                finding = Finding(asked, settings["test"], missing=str(error))
            if not math.isnan(finding.p) and finding.n < rules.min_images:
                reason = f"{finding.check}: {finding.n} photographs, fewer than {rules.min_images}"
                finding = replace(finding, p=math.nan, missing=reason)
            yield finding


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); NaN stays and does not count."""
    values = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    values[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return values.tolist()


def _claim_row(claim: Claim, checks: Sequence[_Judged]) -> dict[str, object]:
    tested = [check for check in checks if not check.finding.missing]
    row = {name: getattr(claim, name) for name in ("id", "claim", "where", "paper_evidence")}
    row |= {"asked_by": STUDY if claim.own else PAPER, "checks": len(checks), "measured": len(tested)}
    if not tested:
        missing = list(dict.fromkeys(check.finding.missing for check in checks))
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        ours = claim.untestable or f"not measured: {missing[0]}{more}"
        return row | {"ours": ours, "test": "none", "n": 0, "verdict": NOT_TESTABLE, "run_ids": ""}
    held, weakest = sum(check.holds for check in tested), max(tested, key=lambda check: check.weakness)
    ours = f"{held} of {len(tested)} checks hold; weakest: {weakest.finding.check}"
    if len(tested) < len(checks):
        ours += f"; {len(checks) - len(tested)} more could not be measured here"
    return row | {
        "ours": ours,
        "test": "; ".join(dict.fromkeys(check.finding.test for check in tested)),
        **{name: getattr(weakest.finding, name) for name in ("n", "effect", "ci_low", "ci_high")},
        "p_corrected": weakest.p_corrected,
        "verdict": _verdict(claim, held / len(tested)),
        "run_ids": " ".join(dict.fromkeys(run for check in tested for run in check.finding.run_ids.split())),
    }


def _verdict(claim: Claim, share: float) -> str:
    if share >= claim.reproduced_from:
        return REPRODUCED
    return PARTLY if share and share >= claim.partly_from else NOT_REPRODUCED


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
