"""The claims ledger as tables and cards for people."""

from __future__ import annotations

import itertools

import pandas as pd

from qartsr_lib.show.tables.render import is_number, read_frame
from qartsr_lib.study.experiments.claims.ledger import (
    CHECK_COLUMNS,
    COLUMNS,
    PAPER,
    STUDY,
    VERDICTS,
    Ledger,
    Rules,
    clearness,
    count_verdicts,
    verdict_text,
)

#: Verdict -> class in the style sheet, from good to open.
KINDS = dict(zip(VERDICTS, ("yes", "partly", "no", "open"), strict=True))


def read_ledger(profile: str) -> Ledger:
    """The committed ledger.

    Raises:
        QartsrError: a file is missing or damaged.
    """
    numbers = {"checks", "measured", "n", "effect", "ci_low", "ci_high", "p", "p_corrected", "holds"}
    tables = {"claims": COLUMNS, "claims_checks": CHECK_COLUMNS}
    texts = {name: [column for column in columns if column not in numbers] for name, columns in tables.items()}
    return Ledger(profile, *(read_frame(profile, name, columns) for name, columns in texts.items()))


def counts(ledger: Ledger, asked_by: str) -> list[tuple[str, int, str]]:
    """(verdict, number of claims, for how many of them data is missing or "") of the paper's claims or our own."""
    claims = ledger.claims[ledger.claims["asked_by"] == asked_by]
    return count_verdicts(claims[["verdict", "measured", "checks"]].itertuples(index=False, name=None))


def verdict_sections(ledger: Ledger, rules: Rules) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)]: verdicts on the paper's claims, on our own questions, inconsistencies, changed rules."""
    sections = []
    for asked_by, verdict in itertools.product((PAPER, STUDY), VERDICTS):
        part = ledger.claims[(ledger.claims["asked_by"] == asked_by) & (ledger.claims["verdict"] == verdict)]
        if len(part):
            title = verdict.capitalize() if asked_by == PAPER else f"Our own questions: {verdict}"
            sections.append((f"{title} ({len(part)})", _verdicts(part)))
    inconsistencies = pd.DataFrame(rules.inconsistencies)
    sections.append(("Where the paper does not fit itself", inconsistencies))
    if rules.changes:
        sections.append(("Rules changed after they first met these results", pd.DataFrame(rules.changes)))
    return sections


def verdict_summary(ledger: Ledger) -> str:
    """How many claims have which verdict, in a sentence: the paper's claims, and apart from them our own questions."""
    groups = {PAPER: "the paper's claims ({}): {}", STUDY: "our own questions ({}): {}"}
    parts = []
    for asked_by, text in groups.items():
        found = counts(ledger, asked_by)
        listed = [f"{number} {verdict}" + f" ({missing})" * bool(missing) for verdict, number, missing in found]
        parts += [text.format(sum(number for _, number, _ in found), ", ".join(listed))] if listed else []
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def check_sections(ledger: Ledger) -> list[tuple[str, pd.DataFrame]]:
    """[(claim, text table of its checks)] for every claim that has any."""
    titles = dict(zip(ledger.claims["id"], ledger.claims["claim"], strict=True))

    def line(row) -> tuple[str, ...]:
        if row.missing:
            return row.missing, "", "", "", "no data"
        return row.check, effect_text(row), f"{row.n:g}", p_text(row.p_corrected), "yes" if row.holds else "no"

    columns = ["check", "effect", "n", "p, corrected", "holds"]
    return [
        (f"{name}: {titles[name]}", pd.DataFrame(map(line, part.itertuples()), columns=columns))
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
            "effect of the weakest check": list(map(effect_text, claims.itertuples())),
            "p, corrected": claims["p_corrected"].map(p_text),
        }
    )


def cards(ledger: Ledger, asked_by: str) -> list[dict[str, object]]:
    """One card per claim, reproduced ones first: its words, how many checks hold, its strongest and weakest check.

    The claim's columns; in words verdict, kind, held ("57 of 60 checks hold"), ends ([(name, its words, run ids)]).
    The strongest check holds with the smallest p, the clearest of equal ones; the weakest is the ledger's own.
    """
    found = []
    for row in ledger.claims[ledger.claims["asked_by"] == asked_by].itertuples():
        checks = ledger.checks[(ledger.checks["id"] == row.id) & (ledger.checks["missing"] == "")]
        checks = checks.assign(clear=[clearness(check) for check in checks.itertuples()]).sort_values(
            ["holds", "p_corrected", "p", "clear"], ascending=[False, True, True, False], kind="stable"
        )
        ordered = list(checks.itertuples())
        weakest = row.ours.partition("weakest: ")[2]
        named = sorted((c for c in ordered if weakest.startswith(c.check)), key=lambda check: len(check.check))
        strong = [check for check in ordered if check not in named[-1:]]
        tied = ", p equal" if strong and named and strong[0].p == named[-1].p else ""
        last = f"weakest of {len(ordered)}{tied}" if strong else "the check"
        ends = [("strongest", check) for check in strong[:1]] + [(last, check) for check in named[-1:]]
        ends = [(name, _check_text(check), check.run_ids) for name, check in ends]
        card = {"kind": KINDS.get(row.verdict, "open"), "held": row.ours.split("; weakest: ")[0], "ends": ends}
        found.append(row._asdict() | card | {"verdict": verdict_text(row.verdict, row.measured, row.checks)})
    return sorted(found, key=lambda card: list(KINDS.values()).index(card["kind"]))


def _check_text(check) -> str:
    """What, effect with interval, n, corrected p, and whether it holds."""
    p = p_text(check.p_corrected)
    parts = [f"effect {effect_text(check)}" * bool(effect_text(check)), f"n = {check.n:g}"]
    parts.append(f"corrected p {'' if p.startswith('<') else '= '}{p}" if p else "")
    return f"{check.check}: {', '.join(filter(None, parts))} – {'holds' if check.holds else 'does not hold'}"


def effect_text(row) -> str:
    """Effect and interval, "" for none."""
    interval = f" [{row.ci_low:.3g}, {row.ci_high:.3g}]" if is_number(row.ci_low) else ""
    return f"{row.effect:.3g}{interval}" if is_number(row.effect) else ""


def p_text(value: float) -> str:
    return "" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
