"""Tables 1, 3 and 4 as blocks, of every profile that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.show.tables.comparison import TABLE4_NOTE
from qartsr_lib.show.tables.render import is_number
from qartsr_lib.show.tables.settings import FULL, OTHER_RECIPES, is_papers, table_parts
from qartsr_lib.show.webpage.blocks import Block, Layout, build_block
from qartsr_lib.show.webpage.sources import Records
from qartsr_lib.study import paper as papers
from qartsr_lib.study import results
from qartsr_lib.study.paper import NO_MODEL

Blocks = Iterator[Block | None]


@dataclass(frozen=True)
class TableKind:
    """One of the paper's tables.

    Attributes:
        number: in the paper; results/<profile>/table<number>.csv.
        title: heading.
        reading: how to read it, in one or two sentences.
        blocks: (rows, profile, records) -> blocks, None for those without a value.
    """

    number: int
    title: str
    reading: str
    blocks: Callable[[pd.DataFrame, str, Records], Blocks]


def profile_blocks(kind: TableKind, profile: str, records: Records) -> list[Block]:
    """The blocks of a profile; none where it lacks the table."""
    name = f"table{kind.number}"
    if not (paths.results_dir(profile) / f"{name}.csv").is_file():
        return []
    frame = results.read_table(profile, name)
    # The paper's data sets first.
    own = frame["dataset"].isin(set(papers.paper_table(kind.number)["dataset"]))
    found = kind.blocks(pd.concat([frame[own], frame[~own]]), profile, records)
    return [block for block in found if block is not None]


def _table1(frame: pd.DataFrame, profile: str, records: Records) -> Blocks:
    for (dataset, backbone), part in frame.groupby(["dataset", "backbone"], sort=False):
        part = _side_by_side(part)
        paper = papers.paper_values(1, ["bits", "timestep", "method"], dataset)
        layout = Layout(
            head=lambda row: f"T = {row.timestep}",
            group=lambda row: f"{row.bits}, {row.method}",
            compete=lambda row: (row.bits, row.method),
            paper=_of(paper, lambda row: (row.bits, row.timestep, row.method)),
            labels={"bits/weight": _stored},
        )
        yield build_block(f"{dataset}, {backbone}", part, layout, profile, records)


def _table3(frame: pd.DataFrame, profile: str, records: Records) -> Blocks:
    keys = ["bits", "timestep", "method"]
    papers = {dataset: papers.paper_values(3, keys, dataset) for dataset in frame["dataset"].unique()}
    for dataset, setting, rows in table_parts(frame):
        several = len(set(setting.timesteps.values())) > 1
        layout = Layout(
            head=_head3 if several else lambda row: row.method,
            group=lambda row: row.bits,
            compete=lambda row: None if row.method == FULL or row.backbone in NO_MODEL else row.bits,
            paper=_of(papers[dataset], _papers_row),
            labels={"bits/weight": _stored, "images": _steps},
        )
        yield build_block(f"{dataset}, {setting.title}", rows, layout, profile, records)


def _table4(frame: pd.DataFrame, profile: str, records: Records) -> Blocks:
    frame = frame[frame["bits"] != "W32A32"]
    for (dataset, backbone, bits, version), part in frame.groupby(
        ["dataset", "backbone", "bits", "version"], sort=False
    ):
        own = version == "paper" and backbone not in OTHER_RECIPES
        paper = papers.paper_values(4, ["bits", "TRQ", "RPQ_star", "ET"], dataset) if own else {}
        layout = Layout(
            head=lambda row: row.method,
            group=lambda row: "",
            compete=lambda row: True,
            paper=_of(paper, lambda row: (row.bits, int(row.trq), int(row.rpq), int(row.et))),
            labels={
                "TRQ": lambda row: _check(row.trq),
                "RPQ*": lambda row: _check(row.rpq),
                "ET": lambda row: _check(row.et),
                "order": lambda row: _without_none(row.order),
                "loss": lambda row: _without_none(row.loss),
                "images": _steps,
            },
        )
        block = build_block(f"{dataset}, {backbone}, {bits}, version {version}", part, layout, profile, records)
        if block is not None and any(column.paper for column in block.columns):
            block = Block(block.title, block.labels, block.columns, block.groups, (TABLE4_NOTE, *block.notes))
        yield block


def _side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one bit width and method together, so that what competes stands side by side."""
    order = {key: place for place, key in enumerate(dict.fromkeys(rows["bits"]))}
    methods = {key: place for place, key in enumerate(dict.fromkeys(rows["method"]))}
    keys = [order[row.bits] * len(methods) + methods[row.method] for row in rows.itertuples()]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def _of(paper: Mapping[tuple, float], key: Callable[[Any], tuple | None]) -> Callable[[Any, str], float | None]:
    """(row, metric) -> the paper's value by the row's key, where it has one."""

    def find(row: Any, metric: str) -> float | None:
        known = key(row)
        return None if known is None else paper.get((*known, metric))

    return find


def _papers_row(row: Any) -> tuple | None:
    known = is_papers(row.backbone, row.method, row.timestep)
    return (row.bits, row.timestep, row.method) if known else None


def _head3(row: Any) -> str:
    return row.method if row.backbone in NO_MODEL else f"{row.method}, T = {row.timestep}"


def _stored(row: Any) -> str:
    known = row.backbone not in NO_MODEL and is_number(row.w_bits_effective)
    return f"{row.w_bits_effective:.2f}" if known else "n/a"


def _steps(row: Any) -> str:
    return f"{row.steps:.0f}" if is_number(row.steps) and row.steps else "–"


def _check(value: str) -> str:
    return "✓" if int(value) else "–"


def _without_none(value: str) -> str:
    return "–" if value == "none" else value


KINDS = (
    TableKind(
        1,
        "Table 1: MaxMin at three timesteps",
        "The timesteps of one method and bit width compete. The paper's numbers are OSEDiff's: compare the pattern "
        "over T, not the level.",
        _table1,
    ),
    TableKind(
        3,
        "Table 3: seven methods, one budget",
        "Quantized methods of one bit width compete. First the paper's setting (rivals on the T = 1000 model, QArtSR "
        "on T = 1), then every method on the same model. Images: how many training passed forward and backward.",
        _table3,
    ),
    TableKind(
        4,
        "Table 4: QArtSR's steps, one by one",
        "All rows of a block compete. In version paper ET adds steps to RPQ*; in version equal every row has the whole "
        "budget.",
        _table4,
    ),
)
