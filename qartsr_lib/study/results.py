"""The results contract: long tables, per-image values and run records under results/<profile>/.

    table1.csv                     one row per setting and metric, `COLUMNS`
    per_image/table1/RealSR.csv    one row per image, one column per metric
    runs/<run_id>.json             how rows were made

Writes are atomic and take a lock, so that several runs may share one folder. Numbers and order are fixed, so that
making a table again on one machine gives the same bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.study.profiles import ALL_METRICS

#: What one quantized model on one data set is called in a table.
KEYS = ("dataset", "backbone", "timestep", "method", "bits")
_VALUES = ("value", "ci_low", "ci_high", "n_images", "n_seeds", "steps", "w_bits_effective")
COLUMNS = (*KEYS, "metric", *_VALUES, "note", "run_id")
PER_IMAGE_COLUMNS = (*KEYS, "seed", "image", "metric", "value", "run_id")
NUMBERS = ("timestep", *_VALUES, "trq", "rpq", "et")  # columns of numbers, those of Table 4's stages among them
#: Rows are sorted by these, each in the paper's order where it has one, then by everything else.
SORT_COLUMNS = ("rule", *KEYS, "seed", "image", "metric")
_ORDER = {
    "rule": ("paper", "honest"),
    "dataset": ("samples", "samples-realistic", "RealSR", "Urban100", "DIV2K_val"),
    "backbone": ("bicubic", "embedded", "embedded-scaled", "osediff"),
    "method": ("FP", "OSEDiff", "MaxMin", "LSQ", "Q-DM", "EfficientDM", "PassionSR", "SVDQuant", "QArtSR"),
    "bits": ("W32A32", "W8A8", "W6A6", "W4A4", "W3A3", "W2A2"),
    "metric": ALL_METRICS,
}
#: Record fields that differ between equal runs; a record is not rewritten for them alone.
VOLATILE = ("git", "duration_s", "peak_memory_mib", "environment", "workers")


def write_table(
    profile: str,
    table: str,
    frame: pd.DataFrame,
    per_image: pd.DataFrame | None = None,
    records: Sequence[dict] = (),
    by: Sequence[str] = ("dataset",),
    front: Sequence[str] = COLUMNS,
) -> Path:
    """Merge rows into results/<profile>/<table>.csv and write what stands behind them; returns the table's path.

    Args:
        table: file stem, such as "table1".
        frame: any columns, those of `by` among them.
        per_image: has at least `PER_IMAGE_COLUMNS`; merged like the table.
        records: run records, each with its "run_id".
        by: columns; earlier rows that share their values with a new row are replaced, others stay: a run that lacks
            a data set keeps its rows, and with KEYS a large table can be made in parts. No column replaces all.
        front: columns that come first, where the frame has them; the others keep the frame's order.

    Raises:
        QartsrError: the disk is full, the folder cannot be written, or the present table is damaged.
    """
    folder = paths.results_dir(profile)
    path = folder / f"{table}.csv"
    with _locked(folder):
        # Records first: a table on disk never names a run that has no record.
        for record in records:
            _write_record(folder / "runs" / f"{record['run_id']}.json", record)
        if per_image is not None:
            for dataset, rows in per_image.groupby("dataset", sort=True):
                _merge(folder / "per_image" / table / f"{dataset}.csv", _wide(rows), by)
        _merge(path, as_text(frame), by, front)
    return path


def read_table(profile: str, table: str) -> pd.DataFrame:
    """A table of `COLUMNS` (else a QartsrError), NUMBERS as numbers; empty values are NaN, empty notes ""."""
    frame = read_cells(paths.results_dir(profile) / f"{table}.csv", COLUMNS)
    return frame.assign(**{column: pd.to_numeric(frame[column]) for column in NUMBERS if column in frame})


def read_measurement(profile: str, name: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table with `columns` (else a QartsrError); those that hold nothing but numbers as numbers, empty cells NaN."""
    cells = read_cells(paths.results_dir(profile) / f"{name}.csv", columns)
    return pd.read_csv(io.StringIO(cells.to_csv(index=False)))


def read_per_image(profile: str, table: str, absent: bool = False) -> pd.DataFrame:
    """Per-image values of all data sets, long, `PER_IMAGE_COLUMNS`; unavailable ones are left out, or NaN."""
    folder, frames = paths.results_dir(profile) / "per_image" / table, []
    for path in sorted(folder.glob("*.csv")) or [folder / "*.csv"]:
        wide = read_cells(path)
        fixed = [column for column in wide.columns if column in PER_IMAGE_COLUMNS]
        long = wide.melt(id_vars=fixed, var_name="metric", value_name="value")
        long = long if absent else long[long["value"] != ""].reset_index(drop=True)
        frames.append(long.assign(**{name: pd.to_numeric(long[name]) for name in ("timestep", "seed", "value")}))
    return pd.concat(frames)


def read_cells(source: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table with every cell as text; a QartsrError where there is none, or it lacks one of `columns`."""
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise QartsrError(f"{source}: no such table; make reproduce writes it") from error
    except UnicodeDecodeError:
        text = ""  # which is no table either
    frame = parse_cells(source, text)
    absent = [column for column in columns if column not in frame]
    if absent:
        raise QartsrError(f"{source}: has no column {', '.join(absent)}; make the table again")
    return frame


def parse_cells(name: object, text: str) -> pd.DataFrame:
    """The text of a table, every cell as text; where it is none, a QartsrError that begins with `name`."""
    try:
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise QartsrError(f"{name}: is not a readable table; restore it from git or remove it") from error


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as it will stand in the file, see `cell_text`."""
    return pd.DataFrame({column: [cell_text(value) for value in frame[column]] for column in frame}, dtype=object)


def cell_text(value: object) -> str:
    """A cell as it stands in a table: seven significant digits, empty when unavailable."""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return "" if math.isnan(value) else f"{value:.7g}"
    return "" if value is None or value is pd.NA else str(value)


def rank(column: str, value: str) -> tuple[int, float, str]:
    """Sort key of one cell: known names in the paper's order, then the others by name."""
    if column in ("timestep", "seed"):
        return (0, -float(value) if column == "timestep" else float(value), "")
    known = _ORDER.get(column, ())
    base = value.split(" [")[0] if column == "method" else value
    return (known.index(base) if base in known else len(known), 0.0, value)


def prune_records(profile: str) -> list[str]:
    """Remove run records that no table of the profile names any more; returns their run ids."""
    folder = paths.results_dir(profile)
    if not folder.is_dir():
        return []
    with _locked(folder):
        tables = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.csv"))
        orphans = [path for path in sorted((folder / "runs").glob("*.json")) if path.stem not in tables]
        for path in orphans:
            path.unlink()
    return [path.stem for path in orphans]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time per results folder; the lock lies in the untracked cache."""
    locks = paths.cache_dir() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"results-{folder.name}.lock").acquire(timeout=120):
            yield
    except Timeout as error:
        raise QartsrError(f"{folder}: another run has been writing there for two minutes; wait or stop it") from error
    except PermissionError as error:
        raise QartsrError(f"{locks}: cannot be written; set QARTSR_HOME to a folder that can") from error


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image: a tenth of the long file's size, which matters in git."""
    index = [column for column in PER_IMAGE_COLUMNS if column not in ("metric", "value")]
    wide = as_text(rows).pivot(index=index, columns="metric", values="value").fillna("")
    return wide[sorted(wide, key=lambda name: rank("metric", name))].rename_axis(columns=None).reset_index()


def _merge(path: Path, new: pd.DataFrame, by: Sequence[str], front: Sequence[str] = ()) -> None:
    """Put rows of text into a file in place of those that share the values of `by`, in the fixed order."""
    if path.is_file() and by:
        old = read_cells(path)
        if not set(by) <= set(old.columns):
            raise QartsrError(f"{path}: is not a results table; restore it from git or remove it")
        kept = old[~among(old, by, keys_of(new, by))]
        new = pd.concat([new, kept], ignore_index=True).fillna("") if len(kept) else new
    front = [column for column in front if column in new]
    write_text(path, _in_order(new[[*front, *new.columns.drop(front)]]).to_csv(index=False, lineterminator="\n"))


def keys_of(frame: pd.DataFrame, columns: Sequence[str]) -> set[tuple[str, ...]]:
    """The values of `columns`, of every row."""
    return set(frame[list(columns)].astype(str).itertuples(index=False, name=None))


def among(frame: pd.DataFrame, columns: Sequence[str], keys: set[tuple[str, ...]]) -> np.ndarray:
    """Which rows have one of `keys` in `columns`, (rows,) bool."""
    rows = frame[list(columns)].astype(str).itertuples(index=False, name=None)
    return np.array([row in keys for row in rows], dtype=bool)


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [column for column in SORT_COLUMNS if column in frame]
    ranks = [[rank(column, value) for value in frame[column]] for column in keys]
    rest = frame.drop(columns=keys).astype(str).to_numpy().tolist()
    return frame.iloc[sorted(range(len(frame)), key=lambda row: ([column[row] for column in ranks], rest[row]))]


def _write_record(path: Path, record: dict) -> None:
    """Keep the present record when only its volatile fields differ: it still tells the truth.

    But one of a dirty checkout gives way to one of a clean checkout, from which the result can be had again.
    """
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    with suppress(FileNotFoundError, ValueError, AttributeError):  # absent, or damaged
        present, new = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        cleaner = present.get("git", {}).get("dirty") and not new.get("git", {}).get("dirty")
        if not cleaner and all(present.get(k) == new.get(k) for k in {*present, *new} - {*VOLATILE}):
            return
    write_text(path, text)
