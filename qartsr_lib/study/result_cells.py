"""The cells of result tables as text: how they are read from a file, written and ordered.

Numbers and order are fixed, so that making a table again on one machine gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study.profiles import ALL_METRICS

COLUMNS = (
    "dataset",
    "backbone",
    "timestep",
    "method",
    "bits",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n_images",
    "n_seeds",
    "steps",
    "w_bits_effective",
    "note",
    "run_id",
)
PER_IMAGE_COLUMNS = ("dataset", "backbone", "timestep", "method", "bits", "seed", "image", "metric", "value", "run_id")

#: Rows are sorted by these, each in the paper's order where it has one, then by everything else.
SORT_COLUMNS = ("rule", "dataset", "backbone", "timestep", "method", "bits", "seed", "image", "metric")

_ORDER = {
    "rule": ("paper", "honest"),
    "dataset": ("samples", "samples-realistic", "RealSR", "Urban100", "DIV2K_val"),
    "backbone": ("bicubic", "embedded", "embedded-scaled", "osediff"),
    "method": ("FP", "OSEDiff", "MaxMin", "LSQ", "Q-DM", "EfficientDM", "PassionSR", "SVDQuant", "QArtSR"),
    "bits": ("W32A32", "W8A8", "W6A6", "W4A4", "W3A3", "W2A2"),
    "metric": ALL_METRICS,
}


def read_cells(source: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table with every cell as text.

    Raises:
        QartsrError: no such file, not a readable table, or without one of `columns`.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise QartsrError(f"{source}: no such table; make reproduce writes it") from error
    except UnicodeDecodeError as error:
        raise _unreadable(source) from error
    frame = parse_cells(source, text)
    absent = [column for column in columns if column not in frame]
    if absent:
        raise QartsrError(f"{source}: has no column {', '.join(absent)}; make the table again")
    return frame


def parse_cells(name: object, text: str) -> pd.DataFrame:
    """The text of a table, every cell as text.

    Raises:
        QartsrError: it is none; the message begins with `name`.
    """
    try:
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise _unreadable(name) from error


def _unreadable(name: object) -> QartsrError:
    return QartsrError(f"{name}: is not a readable table; restore it from git or remove it")


def wide_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image: a tenth of the long file's size, which matters in git."""
    index = [column for column in PER_IMAGE_COLUMNS if column not in ("metric", "value")]
    text = as_text(rows)
    wide = text.pivot(index=index, columns="metric", values="value").fillna("").reset_index()
    metrics = sorted((column for column in wide.columns if column not in index), key=lambda name: rank("metric", name))
    wide.columns.name = None
    return in_order(wide[index + metrics])


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as it will stand in the file: seven significant digits, empty for unavailable."""
    cells = {column: [cell_text(value) for value in frame[column]] for column in frame.columns}
    return pd.DataFrame(cells, dtype=object)


def cell_text(value: object) -> str:
    """A cell as it stands in a table: seven significant digits, empty when unavailable."""
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return f"{value:.7g}"
    return str(value)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by `SORT_COLUMNS`, then by everything else."""
    keys = [column for column in SORT_COLUMNS if column in frame.columns]
    rest = [column for column in frame.columns if column not in keys]
    order = sorted(
        range(len(frame)),
        key=lambda row: (
            [rank(column, frame[column].iloc[row]) for column in keys],
            [str(frame[column].iloc[row]) for column in rest],
        ),
    )
    return frame.iloc[order].reset_index(drop=True)


def rank(column: str, value: str) -> tuple[int, float, str]:
    """Sort key of one cell: known names in the paper's order, then the others by name."""
    if column in ("timestep", "seed"):
        return (0, -float(value) if column == "timestep" else float(value), "")
    known = _ORDER.get(column, ())
    base = value.split(" [")[0] if column == "method" else value
    return (known.index(base) if base in known else len(known), 0.0, value)
