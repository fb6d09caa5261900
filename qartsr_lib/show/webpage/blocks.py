"""Blocks of a results table: rows in groups, a cell per metric, best and second marked, the paper beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.show.tables.render import DECIMALS, is_number
from qartsr_lib.show.webpage.sources import Records


@dataclass(frozen=True)
class Cell:
    """One number: its text and interval, "best", "second" or "", its record ("" without), the paper's value."""

    text: str
    interval: str = ""
    mark: str = ""
    record: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Line:
    """One row: what it is, the text cells beside it, and a cell per metric."""

    head: str
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """A metric: its name, an arrow towards better, whether the paper has values for it here."""

    name: str
    arrow: str
    paper: bool


@dataclass(frozen=True)
class Block:
    """A table of the page.

    Attributes:
        title: such as "RealSR, embedded".
        labels: headings of the text cells.
        groups: (heading, rows that compete) from top to bottom.
        notes: what must be said below it.
    """

    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How the long rows of one kind of table become a block.

    Attributes:
        head: row -> what stands first.
        labels: heading -> row -> text.
        group: row -> heading of the group it stands in.
        compete: row -> rows of one value compete; None does not.
        paper: (row, metric) -> the paper's value, or None.
    """

    head: Callable[[Any], str]
    group: Callable[[Any], str]
    compete: Callable[[Any], object]
    paper: Callable[[Any, str], float | None]
    labels: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)


def build_block(title: str, rows: pd.DataFrame, layout: Layout, profile: str, records: Records) -> Block | None:
    """A block of rows by the results contract, in their order; None where no metric has a value.

    Metrics without any value are left out and named below. Numbers that are equal as shown share a mark.
    """
    metrics = [name for name, part in rows.groupby("metric", sort=False) if part["value"].map(is_number).any()]
    absent = [name for name in dict.fromkeys(rows["metric"]) if name not in metrics]
    if not metrics:
        return None
    lines: dict[tuple, dict[str, Any]] = {}
    for row in rows.itertuples(index=False):
        key = (layout.group(row), layout.head(row), *(text(row) for text in layout.labels.values()))
        lines.setdefault(key, {})[row.metric] = row
    marks = _marks(lines, layout, metrics)
    columns = tuple(
        Column(name, "↓" if lower_is_better(name) else "↑", _has_paper(lines, layout, name)) for name in metrics
    )
    groups: dict[str, list[Line]] = {}
    for (group, head, *labels), found in lines.items():
        cells = tuple(_cell(found.get(name), marks, layout, profile, records) for name in metrics)
        groups.setdefault(group, []).append(Line(head, tuple(labels), cells))
    return Block(
        title,
        tuple(layout.labels),
        columns,
        tuple((group, tuple(found)) for group, found in groups.items()),
        _notes(rows[rows["metric"].isin(metrics)], absent),
    )


def shown(value: float, metric: str) -> str:
    """A value with its metric's decimals; n/a where there is none."""
    return f"{value:.{DECIMALS.get(metric, 4)}f}" if is_number(value) else "n/a"


def _has_paper(lines: Mapping[tuple, Mapping[str, Any]], layout: Layout, metric: str) -> bool:
    return any(layout.paper(found[metric], metric) is not None for found in lines.values() if metric in found)


def _cell(row: Any, marks: Mapping[tuple, str], layout: Layout, profile: str, records: Records) -> Cell:
    if row is None:
        return Cell("")
    low, high = row.ci_low, row.ci_high
    known = all(map(is_number, (row.value, low, high)))
    interval = f"{shown(low, row.metric)} to {shown(high, row.metric)}" if known else ""
    paper = layout.paper(row, row.metric)
    mark = marks.get((row.metric, layout.compete(row), shown(row.value, row.metric)), "")
    record = records.key(profile, row.run_id)
    return Cell(shown(row.value, row.metric), interval, mark, record, "" if paper is None else shown(paper, row.metric))


def _marks(
    lines: Mapping[tuple, Mapping[str, Any]], layout: Layout, metrics: Sequence[str]
) -> dict[tuple[str, object, str], str]:
    """(metric, what competes, value as shown) -> mark; a second best needs three rows."""
    values: dict[tuple[str, object], list[float]] = {}
    for found in lines.values():
        for metric in metrics:
            row = found.get(metric)
            if row is not None and is_number(row.value) and layout.compete(row) is not None:
                values.setdefault((metric, layout.compete(row)), []).append(row.value)
    marks = {}
    for (metric, rivals), numbers in values.items():
        ordered = sorted(numbers, reverse=not lower_is_better(metric))
        texts = list(dict.fromkeys(shown(value, metric) for value in ordered))
        names = ("best", "second") if len(numbers) > 2 else ("best",) if len(numbers) > 1 else ()
        marks |= {(metric, rivals, text): name for text, name in zip(texts, names, strict=False) if len(texts) > 1}
    return marks


def _notes(rows: pd.DataFrame, absent: Sequence[str]) -> tuple[str, ...]:
    said = dict.fromkeys(note for text in rows["note"] for note in str(text).split("; ") if note)
    missing = [f"No values here for {', '.join(absent)}."] if absent else []
    return (*missing, *(note[0].upper() + note[1:] + "." * (not note.endswith(".")) for note in said))
