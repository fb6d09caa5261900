"""From rules and result files to verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from qartsr_lib.study import results
from qartsr_lib.study.experiments.claims.base import CHECKS, Finding, NoData
from qartsr_lib.study.experiments.claims.rules import Claim, Rules, expanded
from qartsr_lib.study.stats import holm

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
        results.write_table(self.profile, "claims", self.claims, by=(), front=COLUMNS)
        results.write_table(self.profile, "claims_checks", self.checks, by=(), front=CHECK_COLUMNS)


def make_ledger(rules: Rules, profile: str) -> Ledger:
    """Run every check; a claim is reproduced where all its checks (or the share it asks for) hold.

    A check holds where effect and interval speak for the claim and its p-value, corrected by Holm over all
    checks of the ledger that have one, is below `rules.level`. Checks without results are left out and
    told; a claim that has no other is not testable.
    """
    found = {claim.id: _findings(claim, rules, profile) for claim in rules.claims}
    every = [finding for findings in found.values() for finding in findings]
    corrected = dict(zip(map(id, every), holm([finding.p for finding in every]), strict=True))
    claims, checks = [], []
    for claim in rules.claims:
        judged = [_judged(finding, corrected[id(finding)], rules.level) for finding in found[claim.id]]
        claims.append(_claim_row(claim, judged))
        checks += [_check_row(claim.id, *entry) for entry in judged]
    return Ledger(
        profile, pd.DataFrame(claims, columns=list(COLUMNS)), pd.DataFrame(checks, columns=list(CHECK_COLUMNS))
    )


def verdict_text(verdict: str, measured: int, checks: int) -> str:
    """A verdict as people read it: where checks have no data, with how many it rests on."""
    return verdict if measured == checks else f"{verdict} ({measured} of {checks} checks measured)"


def count_verdicts(rows: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, str]]:
    """(verdict, measured checks, checks) of claims -> (verdict, how many, for how many of them data is missing).

    In the order of VERDICTS, then others; the last is "" where none is missing.
    """
    rows = list(rows)
    found = []
    for verdict in dict.fromkeys([*VERDICTS, *(name for name, *_ in rows)]):
        part = [measured < checks for name, measured, checks in rows if name == verdict]
        words = "not measured yet" if verdict == NOT_TESTABLE else "on part of the checks"
        if part:
            found.append((verdict, len(part), f"{sum(part)} {words}" if any(part) else ""))
    return found


def _asked(settings: Mapping[str, Any]) -> str:
    """Names a check without results; no two of a claim are alike."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "test")


Judged = tuple[Finding, float, bool]


def _findings(claim: Claim, rules: Rules, profile: str) -> list[Finding]:
    findings = []
    for check in claim.checks:
        for settings in expanded(check, rules.datasets.get(profile, ())):
            try:
                finding = CHECKS.get(settings["test"])(settings, profile)
            except NoData as error:
                finding = Finding(_asked(settings), settings["test"], missing=str(error))
            if not math.isnan(finding.p) and finding.n < rules.min_images:
                reason = f"{finding.what}: {finding.n} photographs, fewer than {rules.min_images}"
                finding = replace(finding, p=math.nan, missing=reason)
            findings.append(finding)
    return findings


def _judged(finding: Finding, corrected: float, level: float) -> Judged:
    return finding, corrected, not finding.missing and finding.favours and (math.isnan(corrected) or corrected < level)


def _claim_row(claim: Claim, judged: Sequence[Judged]) -> dict[str, object]:
    fixed = {name: getattr(claim, name) for name in ("id", "claim", "where", "paper_evidence")}
    tested = [entry for entry in judged if not entry[0].missing]
    fixed |= {"asked_by": STUDY if claim.own else PAPER, "checks": len(judged), "measured": len(tested)}
    if not tested:
        missing = list(dict.fromkeys(finding.missing for finding, *_ in judged))
        ours = claim.untestable or f"not measured: {missing[0]}" + (
            f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        )
        empty = {"test": "none", "n": 0, "verdict": NOT_TESTABLE, "run_ids": ""}
        return fixed | {"ours": ours} | empty | dict.fromkeys(("effect", "ci_low", "ci_high", "p_corrected"), math.nan)
    held = sum(holds for *_, holds in tested)
    weakest, p, _ = max(tested, key=_weakness)
    ours = f"{held} of {len(tested)} checks hold; weakest: {weakest.what}"
    if len(tested) < len(judged):
        ours += f"; {len(judged) - len(tested)} more could not be measured here"
    runs = dict.fromkeys(run for finding, *_ in tested for run in finding.run_ids)
    return fixed | {
        "ours": ours,
        "test": "; ".join(dict.fromkeys(finding.test for finding, *_ in tested)),
        "n": weakest.n,
        "effect": weakest.effect,
        "ci_low": weakest.low,
        "ci_high": weakest.high,
        "p_corrected": p,
        "verdict": _verdict(claim, held / len(tested)),
        "run_ids": " ".join(runs),
    }


def _verdict(claim: Claim, share: float) -> str:
    if share >= claim.reproduced_from:
        return REPRODUCED
    return PARTLY if share and share >= claim.partly_from else NOT_REPRODUCED


def _weakness(entry: Judged) -> tuple[bool, float, float]:
    """Sorts the check that speaks least for a claim last: by its p-value, or where it has none by its margin."""
    finding, _, holds = entry
    p, margin = (0.0 if math.isnan(value) else value for value in (finding.p, finding.margin))
    return not holds, p, -margin


def _check_row(claim: str, finding: Finding, corrected: float, holds: bool) -> dict[str, object]:
    return {
        "id": claim,
        "check": finding.what,
        "test": finding.test,
        "n": finding.n,
        "effect": finding.effect,
        "ci_low": finding.low,
        "ci_high": finding.high,
        "p": finding.p,
        "p_corrected": corrected,
        "holds": holds,
        "missing": finding.missing,
        "run_ids": " ".join(finding.run_ids),
    }
