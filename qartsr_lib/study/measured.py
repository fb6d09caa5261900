"""Measurements outside the table contract: cached cell by cell, each cell with its run record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.study import results
from qartsr_lib.study.result_cells import COLUMNS, cell_text

Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Measured:
    """What `measure_cells` returns.

    Attributes:
        frame: the rows of all cells, the last column "run_id".
        records: one run record per cell.
    """

    profile: str
    frame: pd.DataFrame
    records: tuple[dict[str, Any], ...]

    def write(self, name: str, by: Sequence[str] = ("dataset",), front: Sequence[str] = COLUMNS) -> Path:
        """Merge into results/<profile>/<name>.csv, with the run records; see results.write_measurement."""
        return results.write_measurement(self.profile, name, self.frame, self.records, by, front)

    def run_ids(self, **fixed: object) -> str:
        """The run ids behind the rows whose columns have the given values, separated by spaces."""
        rows = self.frame
        for column, value in fixed.items():
            rows = rows[rows[column] == value]
        return " ".join(rows["run_id"].unique())


def measure_cells(
    profile: str,
    questions: Mapping[Cell, Mapping[str, Any]],
    measure: Callable[[Cell], pd.DataFrame],
    cache: RunCache | None = None,
) -> Measured:
    """Measure every cell, or find it in the cache, so that an interrupted run continues where it stopped.

    Args:
        questions: cell -> all that determines its rows, JSON-able; its hash is the cell's run_id.
        measure: cell -> its rows, with the columns that `Measured.write` merges by.
        cache: the profile's own by default.
    """
    cache = cache or RunCache.for_profile(profile)
    environment = provenance.environment()
    frames, records = [], []
    for cell, question in questions.items():
        key = stable_hash([question, environment, provenance.source_sha256()])
        folder = cache.get_or_put("measurement", key, lambda folder, cell=cell: _fill(folder, measure, cell))
        found = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        run_id = stable_hash(question)[:12]
        frames.append(pd.DataFrame(found["data"], columns=found["columns"]).assign(run_id=run_id))
        records.append(
            {
                "run_id": run_id,
                "profile": profile,
                **question,
                "git": provenance.git_state(),
                "environment": environment,
                "duration_s": {"measurement": found["seconds"]},
                "peak_memory_mib": round(provenance.peak_memory_mib()),
                "outputs_sha256": stable_hash([[cell_text(value) for value in row] for row in found["data"]]),
            }
        )
    return Measured(profile, pd.concat(frames, ignore_index=True), tuple(records))


def _fill(folder: Path, measure: Callable[[Cell], pd.DataFrame], cell: Cell) -> None:
    started = time.monotonic()
    rows = measure(cell).to_dict("split")
    content = {"columns": rows["columns"], "data": rows["data"], "seconds": round(time.monotonic() - started, 2)}
    (folder / "rows.json").write_text(json.dumps(content), encoding="utf-8")
