"""The verdicts: what the paper claims, what was found here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qartsr_lib.base import paths
from qartsr_lib.show.webpage.sources import Records, first_with
from qartsr_lib.study.experiments.claims.ledger import COLUMNS, STUDY, VERDICTS, count_verdicts, verdict_text
from qartsr_lib.study.results import read_cells

FILE = "claims.csv"
#: Verdict -> class in the style sheet, from good to open.
KINDS = dict(zip(VERDICTS, ("yes", "partly", "no", "open"), strict=True))


@dataclass(frozen=True)
class Verdict:
    """One claim; texts are as in the file, `measured` joins effect, interval, n, test and p.

    `verdict` tells where checks have no data.
    """

    id: str
    claim: str
    where: str
    paper: str
    ours: str
    measured: tuple[str, ...]
    verdict: str
    kind: str
    records: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The paper's claims or our own questions, and how many have which verdict.

    `counts`: (verdict, class, number, for how many of them data is missing or "").
    """

    title: str
    claims: tuple[Verdict, ...]
    counts: tuple[tuple[str, str, int, str], ...]


@dataclass(frozen=True)
class Verdicts:
    """All claims of a profile."""

    profile: str
    groups: tuple[Group, ...]


def read_verdicts(profiles: Sequence[str], records: Records) -> Verdicts | None:
    """The claims of the first profile that has some; None where none has."""
    profile = first_with(profiles, FILE)
    if profile is None:
        return None
    rows = read_cells(paths.results_dir(profile) / FILE, COLUMNS).to_dict("records")
    own = [row for row in rows if row["asked_by"] == STUDY]
    papers = [row for row in rows if row["asked_by"] != STUDY]
    parts = {"The paper's claims": papers, "Our own questions": own}
    return Verdicts(profile, tuple(_group(title, part, profile, records) for title, part in parts.items() if part))


def _group(title: str, rows: Sequence[dict[str, str]], profile: str, records: Records) -> Group:
    """The reproduced ones first."""
    found = [_verdict(row, profile, records) for row in rows]
    claims = tuple(sorted(found, key=lambda claim: list(KINDS.values()).index(claim.kind)))
    counts = count_verdicts((row["verdict"], int(row["measured"]), int(row["checks"])) for row in rows)
    return Group(title, claims, tuple((name, KINDS.get(name, "open"), *more) for name, *more in counts))


def _verdict(row: dict[str, str], profile: str, records: Records) -> Verdict:
    keys = [records.key(profile, run_id) for run_id in row["run_ids"].split()]
    return Verdict(
        id=row["id"],
        claim=row["claim"],
        where=row["where"],
        paper=row["paper_evidence"],
        ours=row["ours"],
        measured=tuple(_measured(row)),
        verdict=verdict_text(row["verdict"], int(row["measured"]), int(row["checks"])),
        kind=KINDS.get(row["verdict"], "open"),
        records=tuple(dict.fromkeys(key for key in keys if key)),
    )


def _measured(row: dict[str, str]) -> list[str]:
    parts = []
    if row["effect"]:
        interval = f" [{_short(row['ci_low'])}, {_short(row['ci_high'])}]" if row["ci_low"] and row["ci_high"] else ""
        parts.append(f"effect {_short(row['effect'])}{interval}")
    parts += [f"n = {row['n']}"] if row["n"] else []
    parts += [row["test"]] if row["test"] else []
    parts += [f"corrected p = {_short(row['p_corrected'])}"] if row["p_corrected"] else []
    return parts


def _short(text: str) -> str:
    """Three significant digits, where it is a number."""
    try:
        return f"{float(text):.3g}".replace("-", "−")
    except ValueError:
        return text
