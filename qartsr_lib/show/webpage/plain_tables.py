"""Table 2 and the deployment table: one row per model, every number of a row from one run record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.show.tables.settings import cell_title
from qartsr_lib.show.tables.table2 import honest_rule_table, paper_rule_table
from qartsr_lib.show.webpage.sources import Records
from qartsr_lib.study.results import read_cells

NOT_NUMBERS = ("method", "bits", "runtime", "data set", "backbone")


@dataclass(frozen=True)
class PlainTable:
    """A table of text.

    Attributes:
        rows: (key of the run record or "", cells) from top to bottom.
        linked: for each column whether its cells are numbers of the record.
    """

    title: str
    headings: tuple[str, ...]
    linked: tuple[bool, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def table2(profile: str, records: Records) -> list[PlainTable]:
    """Both rules of Table 2; none where the profile lacks it."""
    path = paths.results_dir(profile) / "table2.csv"
    if not path.is_file():
        return []
    frame = read_cells(path, ("rule", "method", "bits", "run_id"))
    for column in frame.columns.difference(["rule", "method", "bits", "run_id"]):
        frame[column] = pd.to_numeric(frame[column])
    made = (
        ("paper", "By the paper's rule, and what it prints", paper_rule_table),
        ("honest", "Counted completely and like with like", honest_rule_table),
    )
    return [_plain(title, table(frame), _ids(frame, rule), profile, records) for rule, title, table in made]


def _ids(frame: pd.DataFrame, rule: str) -> list[str]:
    return list(frame.loc[frame["rule"] == rule, "run_id"])


def _fixed(decimals: int) -> Callable[[str], str]:
    return lambda text: f"{float(text):,.{decimals}f}" if text else ""


#: Column of deployment.csv -> heading, text.
DEPLOYMENT: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "dataset": ("data set", str),
    "method": ("method", str),
    "bits": ("bits", str),
    "runtime": ("runtime", str),
    "file_MB": ("file, MB ↓", _fixed(3)),
    "latency_ms": ("time, ms ↓", _fixed(0)),
    "latency_ratio_vs_fp32": ("faster than fp32 ↑", _fixed(2)),
    "latency_ratio_vs_bf16": ("faster than bf16 ↑", _fixed(2)),
    "peak_MB": ("peak, MB ↓", _fixed(0)),
    "psnr_y": ("PSNR-Y ↑", _fixed(2)),
    "mean_grey_diff": ("mean grey levels apart ↓", _fixed(3)),
    "max_grey_diff": ("largest ↓", _fixed(0)),
}


def deployment(profile: str, records: Records) -> list[PlainTable]:
    """Sizes, times and agreement of every runtime, one table per model; none where the profile lacks them."""
    path = paths.results_dir(profile) / "deployment.csv"
    if not path.is_file():
        return []
    frame = read_cells(path, (*DEPLOYMENT, "backbone", "timestep", "run_id"))
    found = []
    for (backbone, timestep), rows in frame.groupby(["backbone", "timestep"], sort=False):
        shown = pd.DataFrame({heading: rows[name].map(text) for name, (heading, text) in DEPLOYMENT.items()})
        found.append(_plain(cell_title(backbone, timestep), shown, list(rows["run_id"]), profile, records))
    return found


def _plain(title: str, table: pd.DataFrame, run_ids: Sequence[str], profile: str, records: Records) -> PlainTable:
    keys = [records.key(profile, run_id) for run_id in run_ids]
    cells = table.fillna("").astype(str).itertuples(index=False, name=None)
    linked = tuple(name not in NOT_NUMBERS and not name.endswith(("(paper)", "(its reduction)")) for name in table)
    return PlainTable(title, tuple(table), linked, tuple(zip(keys, map(tuple, cells), strict=True)))
