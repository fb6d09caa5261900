"""From rules and result files to verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from qartsr_lib.study import results
from qartsr_lib.study.experiments.claims.rules import CHECKS, Claim, Finding, NoData, Rules, expanded
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
    found = [{"id": claim.id, **asdict(one)} for claim in rules.claims for one in _findings(claim, rules, profile)]
    checks = pd.DataFrame(found, columns=["id", *(field.name for field in fields(Finding))])
    checks["p_corrected"] = holm(checks["p"])
    speaks = (checks["missing"] == "") & checks["favours"].astype(bool)
    checks["holds"] = speaks & ~(checks["p_corrected"] >= rules.level)
    claims = [_claim_row(claim, checks[checks["id"] == claim.id]) for claim in rules.claims]
    return Ledger(profile, pd.DataFrame(claims, columns=[*COLUMNS]), checks[[*CHECK_COLUMNS]])


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
    weakest = max(tested.fillna({"p": 0.0, "margin": 0.0}).itertuples(), key=lambda c: (not c.holds, c.p, -c.margin))
    ours = f"{tested['holds'].sum()} of {len(tested)} checks hold; weakest: {weakest.check}"
    if len(tested) < len(checks):
        ours += f"; {len(checks) - len(tested)} more could not be measured here"
    return row | {
        "ours": ours,
        "test": "; ".join(tested["test"].unique()),
        **{name: getattr(weakest, name) for name in ("n", "effect", "ci_low", "ci_high", "p_corrected")},
        "verdict": _verdict(claim, tested["holds"].mean()),
        "run_ids": " ".join(dict.fromkeys(" ".join(tested["run_ids"]).split())),
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
