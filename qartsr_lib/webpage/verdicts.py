"""The verdicts: what the paper claims, what was found here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qartsr_lib import paths
from qartsr_lib.claims.ledger import COLUMNS, VERDICTS
from qartsr_lib.results import read_cells
from qartsr_lib.webpage.sources import Records, first_with

FILE = "claims.csv"
#: Verdict -> class in the style sheet, from good to open.
KINDS = dict(zip(VERDICTS, ("yes", "partly", "no", "open"), strict=True))


@dataclass(frozen=True)
class Verdict:
    """One claim; texts are as in the file, `measured` joins effect, interval, n, test and p."""

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
class Verdicts:
    """All claims of a profile, and how many have which verdict: (verdict, class, number)."""

    profile: str
    claims: tuple[Verdict, ...]
    counts: tuple[tuple[str, str, int], ...]


def read_verdicts(profiles: Sequence[str], records: Records) -> Verdicts | None:
    """The claims of the first profile that has some, the reproduced ones first; None where none has."""
    profile = first_with(profiles, FILE)
    if profile is None:
        return None
    rows = read_cells(paths.results_dir(profile) / FILE, COLUMNS).to_dict("records")
    found = [_verdict(row, profile, records) for row in rows]
    claims = tuple(sorted(found, key=lambda claim: list(KINDS.values()).index(claim.kind)))
    count = Counter(claim.verdict for claim in claims)
    order = [*KINDS, *(name for name in count if name not in KINDS)]
    counts = tuple((name, KINDS.get(name, "open"), count[name]) for name in order if count[name])
    return Verdicts(profile, claims, counts)


def _verdict(row: dict[str, str], profile: str, records: Records) -> Verdict:
    keys = [records.key(profile, run_id) for run_id in row["run_ids"].split()]
    return Verdict(
        id=row["id"],
        claim=row["claim"],
        where=row["where"],
        paper=row["paper_evidence"],
        ours=row["ours"],
        measured=tuple(_measured(row)),
        verdict=row["verdict"],
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
