"""The results contract: long tables, per-image values and run records under results/<profile>/.

    table1.csv                     one row per cell and metric, `COLUMNS`
    per_image/table1/RealSR.csv    one row per image, one column per metric
    runs/<run_id>.json             how a cell was made

Writes are atomic and take a lock, so that several runs may share one folder. A table is merged by
data set: rows of data sets that this run has are replaced, the others are kept as they are, so a
run that lacks a data set never overwrites results that have it; with `keep` it is merged by cell, so
that a large table can be made in parts. Numbers and order are fixed, so
that making a table again on one machine gives the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.study.result_cells import COLUMNS, PER_IMAGE_COLUMNS, as_text, in_order, read_cells, wide_table

#: Columns of numbers, those of Table 4's stages among them.
NUMBERS = (
    *("timestep", "value", "ci_low", "ci_high", "n_images", "n_seeds", "steps", "w_bits_effective"),
    *("trq", "rpq", "et"),
)
#: What one quantized model on one data set is called in a table.
CELL = ("dataset", "backbone", "timestep", "method", "bits")

#: Record fields that differ between equal runs; a record is not rewritten for them alone.
VOLATILE = ("git", "duration_s", "peak_memory_mib", "environment", "workers")


def write_table(
    profile: str,
    table: str,
    frame: pd.DataFrame,
    per_image: pd.DataFrame | None = None,
    records: Sequence[dict] = (),
    keep: bool = False,
) -> Path:
    """Merge a run into results/<profile>/<table>.csv and write what stands behind it.

    Args:
        profile: profile name.
        table: file stem, such as "table1".
        frame: has at least `COLUMNS`; further columns follow them.
        per_image: has at least `PER_IMAGE_COLUMNS`.
        records: run records, each with its "run_id".
        keep: replace only the `CELL`s that this run has, not all rows of its data sets: for a part of a table.

    Returns:
        The path of the table.

    Raises:
        QartsrError: the disk is full, the folder cannot be written, or the present table is damaged.
    """
    folder = paths.results_dir(profile)
    path = folder / f"{table}.csv"
    absent = [column for column in COLUMNS if column not in frame.columns]
    if absent:
        raise ValueError(f"{table}: columns {absent} are missing from the frame")
    with _locked(folder):
        # Records first: a table on disk never names a run that has no record.
        for record in records:
            _write_record(folder / "runs" / f"{record['run_id']}.json", record)
        if per_image is not None:
            for dataset, rows in per_image.groupby("dataset", sort=True):
                images = folder / "per_image" / table / f"{dataset}.csv"
                _write_csv(images, _merged(images, wide_table(rows), CELL, ()) if keep else wide_table(rows))
        _write_csv(path, _merged(path, as_text(frame), CELL if keep else ("dataset",)))
    return path


def write_measurement(
    profile: str,
    name: str,
    frame: pd.DataFrame,
    records: Sequence[dict] = (),
    by: Sequence[str] = ("dataset",),
    front: Sequence[str] = COLUMNS,
) -> Path:
    """Write results/<profile>/<name>.csv for a frame outside the table contract, merged by data set too.

    Args:
        frame: any columns, those of `by` among them.
        records: run records, each with its "run_id".
        by: columns; earlier rows that share their values with a new row are replaced, others stay.
            No column replaces the whole table.
        front: columns that come first, where the frame has them; the others keep the frame's order.
    """
    path = paths.results_dir(profile) / f"{name}.csv"
    with _locked(path.parent):
        for record in records:
            _write_record(path.parent / "runs" / f"{record['run_id']}.json", record)
        _write_csv(path, _merged(path, as_text(frame), by, front))
    return path


def read_table(profile: str, table: str) -> pd.DataFrame:
    """The committed table with numeric columns as numbers; empty values are NaN, empty notes "".

    Raises:
        QartsrError: no such table, not a table, or one of another kind.
    """
    frame = read_cells(paths.results_dir(profile) / f"{table}.csv", COLUMNS)
    for column in NUMBERS:
        if column in frame:
            frame[column] = pd.to_numeric(frame[column])
    return frame


def read_run(profile: str, table: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(table, per-image values of all data sets) as they are on disk.

    Raises:
        QartsrError: no such table, or not a table.
    """
    files = sorted((paths.results_dir(profile) / "per_image" / table).glob("*.csv"))
    return read_table(profile, table), pd.concat([read_per_image(profile, table, path.stem) for path in files])


def read_measurement(profile: str, name: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """results/<profile>/<name>.csv; columns that hold nothing but numbers as numbers, empty ones NaN.

    Raises:
        QartsrError: no such table, not a table, or without one of `columns`.
    """
    cells = read_cells(paths.results_dir(profile) / f"{name}.csv", columns)
    return pd.read_csv(io.StringIO(cells.to_csv(index=False)))


def read_per_image(profile: str, table: str, dataset: str) -> pd.DataFrame:
    """Per-image values in long format, `PER_IMAGE_COLUMNS`; unavailable ones are left out."""
    wide = read_cells(paths.results_dir(profile) / "per_image" / table / f"{dataset}.csv")
    fixed = [column for column in wide.columns if column in PER_IMAGE_COLUMNS]
    long = wide.melt(id_vars=fixed, var_name="metric", value_name="value")
    long = long[long["value"] != ""].reset_index(drop=True)
    for column in ("timestep", "seed", "value"):
        long[column] = pd.to_numeric(long[column])
    return long


def prune_records(profile: str) -> list[str]:
    """Remove run records that no table of the profile names any more; returns their run ids."""
    folder = paths.results_dir(profile)
    if not folder.is_dir():
        return []
    with _locked(folder):
        tables = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.csv"))]
        orphans = [
            path for path in sorted((folder / "runs").glob("*.json")) if not any(path.stem in table for table in tables)
        ]
        for path in orphans:
            path.unlink()
    return [path.stem for path in orphans]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time per results folder; the lock lies in the untracked cache."""
    locks = paths.cache_dir() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"results-{folder.name}.lock")
        with lock.acquire(timeout=120):
            yield
    except Timeout as error:
        raise QartsrError(f"{folder}: another run has been writing there for two minutes; wait or stop it") from error
    except PermissionError as error:
        raise QartsrError(f"{locks}: cannot be written; set QARTSR_HOME to a folder that can") from error


def _merged(
    path: Path, new: pd.DataFrame, by: Sequence[str] = ("dataset",), front: Sequence[str] = COLUMNS
) -> pd.DataFrame:
    if path.is_file() and by:
        old = read_cells(path)
        if not set(by) <= set(old.columns):
            raise QartsrError(f"{path}: is not a results table; restore it from git or remove it")
        replaced = set(new[list(by)].itertuples(index=False, name=None))
        kept = old[[row not in replaced for row in old[list(by)].itertuples(index=False, name=None)]]
        new = pd.concat([new, kept], ignore_index=True).fillna("") if len(kept) else new
    front = [column for column in front if column in new.columns]
    return in_order(new[front + [column for column in new.columns if column not in front]])


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _write_record(path: Path, record: dict) -> None:
    """Keep the present record when only its volatile fields differ: it still tells the truth.

    But one of a dirty checkout gives way to one of a clean checkout, from which the result can be had again.
    """
    if path.is_file():
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
            cleaner = present.get("git", {}).get("dirty") and not record.get("git", {}).get("dirty")
            if not cleaner and _stable(present) == _stable(json.loads(json.dumps(record))):
                return
        except (ValueError, AttributeError):
            pass
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def _stable(record: dict) -> dict:
    return {field: value for field, value in record.items() if field not in VOLATILE}
