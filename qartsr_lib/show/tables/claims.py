"""The claims ledger as tables for people."""

from __future__ import annotations

import itertools
import math

import pandas as pd

from qartsr_lib.study.experiments.claims.ledger import PAPER, STUDY, VERDICTS, Ledger, count_verdicts, verdict_text
from qartsr_lib.study.experiments.claims.rules import Rules


def verdict_sections(ledger: Ledger, rules: Rules) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)]: verdicts on the paper's claims, on our own questions, inconsistencies, changed rules."""
    sections = []
    for asked_by, verdict in itertools.product((PAPER, STUDY), VERDICTS):
        part = ledger.claims[(ledger.claims["asked_by"] == asked_by) & (ledger.claims["verdict"] == verdict)]
        if len(part):
            title = verdict.capitalize() if asked_by == PAPER else f"Our own questions: {verdict}"
            sections.append((f"{title} ({len(part)})", _verdicts(part)))
    inconsistencies = pd.DataFrame([{"where": entry.where, "what": entry.what} for entry in rules.inconsistencies])
    sections.append(("Where the paper does not fit itself", inconsistencies))
    if rules.changes:
        sections.append(("Rules changed after they first met these results", pd.DataFrame(rules.changes)))
    return sections


def verdict_summary(ledger: Ledger) -> str:
    """How many claims have which verdict, in a sentence: the paper's claims, and apart from them our own questions."""
    groups = {PAPER: "the paper's claims ({}): {}", STUDY: "our own questions ({}): {}"}
    parts = []
    for asked_by, words in groups.items():
        part = ledger.claims[ledger.claims["asked_by"] == asked_by]
        counts = count_verdicts(part[["verdict", "measured", "checks"]].itertuples(index=False, name=None))
        listed = [f"{number} {verdict}" + f" ({missing})" * bool(missing) for verdict, number, missing in counts]
        parts += [words.format(len(part), ", ".join(listed))] if listed else []
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def check_sections(ledger: Ledger) -> list[tuple[str, pd.DataFrame]]:
    """[(claim, text table of its checks)] for every claim that has any."""
    titles = dict(zip(ledger.claims["id"], ledger.claims["claim"], strict=True))
    return [
        (f"{name}: {titles[name]}", pd.DataFrame([_check(row) for row in part.itertuples()]))
        for name, part in ledger.checks.groupby("id", sort=False)
    ]


def _verdicts(claims: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "claim": claims["claim"],
            "where": claims["where"],
            "the paper": claims["paper_evidence"],
            "verdict": [verdict_text(row.verdict, row.measured, row.checks) for row in claims.itertuples()],
            "ours": claims["ours"],
            "effect of the weakest check": [_effect(row) for row in claims.itertuples()],
            "p, corrected": claims["p_corrected"].map(_p),
        }
    )


def _check(row) -> dict[str, str]:
    if row.missing:
        return {"check": row.missing, "effect": "", "n": "", "p, corrected": "", "holds": "no data"}
    holds = "yes" if row.holds else "no"
    return {"check": row.check, "effect": _effect(row), "n": str(row.n), "p, corrected": _p(row.p_corrected)} | {
        "holds": holds
    }


def _effect(row) -> str:
    if math.isnan(row.effect):
        return ""
    interval = "" if math.isnan(row.ci_low) else f" [{row.ci_low:.3g}, {row.ci_high:.3g}]"
    return f"{row.effect:.3g}{interval}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
