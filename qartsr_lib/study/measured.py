"""Questions and answers: worked out once, kept in the cache, written with a record of how they were made.

A question is all that determines some rows; its hash is their run_id. Each is answered as a whole, and an interrupted
run goes on with those that are left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import results
from qartsr_lib.study.parts import check_part

provenance.source_sha256()  # now: what is edited later is not what this process has imported
ANSWER = "answer.json"
Asked = TypeVar("Asked")


@dataclass
class Measured:
    """Rows and what stands behind them; the last two are of sweeps, by `evaluator.Experiment`."""

    profile: str
    table: pd.DataFrame  # with a column "run_id"; of sweeps with `results.COLUMNS`
    records: list[dict[str, Any]]  # one per run_id
    per_image: pd.DataFrame | None = None  # `results.PER_IMAGE_COLUMNS` and "note"
    images: dict[tuple, Path] = field(repr=False, default_factory=dict)  # upscaled, by experiment and image id
    histories: dict[Any, list[dict[str, float]]] = field(repr=False, default_factory=dict)  # of training

    def write(
        self, name: str, keep: bool = False, by: Sequence[str] = ("dataset",), front: Sequence[str] = results.COLUMNS
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """Merge into results/<profile>/<name>.csv, with per-image values and run records; see `results.write_table`.

        A QartsrError where the other rows cannot stand beside these, see `check_part`.

        Returns (table, per-image values): these, or with `keep`, where this is a part of a sweep's table whose other
        rows stay, those of the whole.
        """
        if keep:
            check_part(self.profile, name, self.table, self.per_image, self.records)
        by = results.KEYS if keep else by
        results.write_table(self.profile, name, self.table, self.per_image, self.records, by, front)
        if not keep:
            return self.table, self.per_image
        return results.read_table(self.profile, name), results.read_per_image(self.profile, name)

    def run_ids(self, **fixed: object) -> str:
        """The run ids behind the rows whose columns have the given values, separated by spaces."""
        chosen = (self.table[list(fixed)] == pd.Series(fixed)).all(axis=1)
        return " ".join(self.table.loc[chosen, "run_id"].unique())


def measure_questions(
    profile: str, questions: Mapping[Asked, Mapping[str, Any]], measure: Callable[[Asked], pd.DataFrame]
) -> Measured:
    """Measure every question's rows, or find them in the profile's cache.

    `questions`: name -> all that determines its rows, JSON-able; `measure`: name -> rows with the columns that
    `Measured.write` merges by. A QartsrError where there is nothing to measure.
    """
    cache, environment = RunCache.for_profile(profile), provenance.environment()
    frames, records = [], []
    for name, question in questions.items():
        found = answered(
            cache, "measurement", question, environment, lambda _, name=name: measure(name).to_dict("split")
        )
        cells = [[results.cell_text(value) for value in row] for row in found["data"]]
        records.append(run_record(profile, question, environment, {"measurement": found["seconds"]}, cells))
        frame = pd.DataFrame(found["data"], columns=found["columns"])
        frames.append(frame.assign(run_id=records[-1]["run_id"]))
    if not sum(map(len, frames)):
        raise QartsrError(f"the settings of profile {profile!r} leave nothing to measure here; see OVERRIDES")
    return Measured(profile, pd.concat(frames, ignore_index=True), records)


def answered(
    cache: RunCache, kind: str, question: Any, environment: Mapping[str, Any], answer: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The answer to a question (see `entry_key`), found in the cache or worked out and kept there.

    `answer` writes files into the folder that it is given, and returns what else is to be kept, JSON-able. This returns
    the same, with the entry's "folder", and "seconds", its time where it names none itself.
    """

    def fill(folder: Path) -> None:
        started = time.monotonic()
        found = answer(folder)
        found = {"seconds": round(time.monotonic() - started, 3)} | found
        (folder / ANSWER).write_text(json.dumps(found), encoding="utf-8")

    folder = cache.get_or_put(kind, entry_key(question, environment), fill)
    return json.loads((folder / ANSWER).read_text(encoding="utf-8")) | {"folder": folder}


def entry_key(question: Any, environment: Mapping[str, Any]) -> str:
    """Key in a cache of what the question (JSON-able), the environment and the library's source determine."""
    return stable_hash([question, environment, provenance.source_sha256()])


def run_record(profile: str, question: Mapping, environment: Mapping, seconds: Mapping, outputs: Sequence) -> dict:
    """How rows were made. Their run_id names what was asked for: the same question has the same on every machine."""
    return {
        "run_id": stable_hash(question)[:12],
        "profile": profile,
        **question,
        "git": provenance.git_state(),
        "environment": environment,
        "duration_s": {part: round(duration, 2) for part, duration in seconds.items()},
        "peak_memory_mib": round(provenance.peak_memory_mib()),
        "outputs_sha256": stable_hash(outputs),
    }
