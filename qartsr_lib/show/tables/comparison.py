"""Rendered sections of Tables 3 and 4, and the rank of a method."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.show.tables import render as tables
from qartsr_lib.show.tables.settings import OTHER_RECIPES, Setting, is_papers, table_parts
from qartsr_lib.study import paper as papers
from qartsr_lib.study.paper import NO_MODEL

Sections = list[tuple[str, pd.DataFrame]]
STAGES = ["trq", "rpq", "et", "order", "loss", "version"]
TABLE4_NOTE = (
    "The paper's rows TRQ+ET and TRQ+RPQ* at W4A4 (25.17 and 24.79 dB) may be swapped in the transcription used here: "
    "the check marks of its Table 4 could not be read with certainty."
)
_PAPER_KEYS = {"TRQ": "trq", "RPQ_star": "rpq", "ET": "et"}


def table3_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set and setting, the best method in bold; the paper's values in its own setting.

    The paper runs full precision and the rivals on T = 1000 and QArtSR on T = 1: where both models are
    there, the first section of a data set is this setting. Sections of one T have also what the paper
    left out; a column says which of their rows are the paper's. Outside systems and bicubic interpolation stand in
    every section.
    """
    return [
        (f"{dataset}, {setting.title}", _table3(rows, metrics, setting))
        for dataset, setting, rows in table_parts(results)
    ]


def _table3(rows: pd.DataFrame, metrics: Sequence[str], setting: Setting) -> pd.DataFrame:
    table = tables.wide(rows, metrics, compare=("timestep", "method"))
    if setting.backbone not in OTHER_RECIPES:
        table = tables.add_paper(table, 3, metrics, stand_in="RealSR")
    known = rows.drop_duplicates(["bits", "method"]).set_index(["bits", "method"])
    extra = [known.loc[(row.bits, row.method)] for row in table.itertuples()]
    marks = [is_papers(row.backbone, method, row.timestep) for method, row in zip(table["method"], extra, strict=True)]
    model = ["" if row.backbone in NO_MODEL else str(row.timestep) for row in extra]
    new = {
        "T": model,
        "method": list(table["method"]),
        "paper's setting": ["yes" if mark else "" for mark in marks],
        "bits/weight": ["n/a" if row.backbone in NO_MODEL else _number(row.w_bits_effective, 2) for row in extra],
        "images": [_number(row.steps, 0) for row in extra],
    }
    rest = table.drop(columns=["dataset", "timestep", "method", "bits"])
    return pd.concat([table[["bits"]], pd.DataFrame(new), rest], axis=1)


def _number(value: float, decimals: int) -> str:
    return "n/a" if pd.isna(value) else f"{value:.{decimals}f}"


def table4_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set, backbone, bit width and version; the paper's values beside its own version."""
    sections = []
    keys = ["dataset", "backbone", "bits", "version"]
    paper = papers.paper_table(4).rename(columns=_PAPER_KEYS)
    for (dataset, backbone, bits, version), part in results.groupby(keys, sort=False):
        lines: dict[tuple, dict[str, str]] = {}
        for row in part[part["bits"] != "W32A32"].itertuples(index=False):
            key = (row.timestep, row.method, row.trq, row.rpq, row.et, row.order, row.loss, row.steps)
            lines.setdefault(key, {})[row.metric] = tables.cell(row)
        names = ["timestep", "method", *STAGES[:-1], "images"]
        table = pd.DataFrame([dict(zip(names, key, strict=True)) | values for key, values in lines.items()])
        if table.empty:
            continue
        if version == "paper" and backbone not in OTHER_RECIPES:
            known = paper[(paper["dataset"] == (dataset if dataset in set(paper["dataset"]) else "RealSR"))]
            known = known[known["bits"] == bits].set_index(["trq", "rpq", "et"])
            for metric in [m for m in metrics if m in known and m in table]:
                found = [known[metric].get((r.trq, r.rpq, r.et)) for r in table.itertuples()]
                text = [
                    "" if value is None or pd.isna(value) else f"{value:.{tables.DECIMALS.get(metric, 4)}f}"
                    for value in found
                ]
                table.insert(table.columns.get_loc(metric) + 1, f"{metric} (paper)", text)
        shown = [c for c in table if c in names or c.removesuffix(" (paper)") in metrics]
        sections.append((f"{dataset}, {backbone}, {bits}, version {version}", table[shown].fillna("").astype(str)))
    return sections


def table4_note(sections: Sections) -> str:
    """What must stand below Table 4 where the paper's rows are beside ours; empty elsewhere."""
    return TABLE4_NOTE if any(column.endswith("(paper)") for _, table in sections for column in table) else ""


def ranks(results: pd.DataFrame, metric: str = "PSNR") -> pd.DataFrame:
    """Place of every method by `metric`: rows (dataset, backbone, T, bits), columns methods, 1 is best.

    Full precision, bicubic interpolation and outside systems have no place, nor has a method without a value.
    """
    cells = results[(results["metric"] == metric) & (results["method"] != "FP")]
    cells = cells[~cells["backbone"].isin(NO_MODEL)]
    cells = cells[cells["value"].map(tables.is_number)]
    ascending = lower_is_better(metric)
    keys = ["dataset", "backbone", "timestep", "bits"]
    place = cells.groupby(keys, sort=False)["value"].rank(ascending=ascending, method="min").astype(int)
    return cells.assign(place=place).pivot_table(index=keys, columns="method", values="place", sort=False)
