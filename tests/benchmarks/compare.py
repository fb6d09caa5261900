"""`make compare`: which regenerated numbers differ from the committed ones beyond the noise floor.

    python -m tests.benchmarks.compare --profile tiny
    python -m tests.benchmarks.compare --measure-floor

Reads results/<profile>/*.csv, pairs rows by what identifies them, and judges each number by what
rounding alone does (`noise_floor`). Numbers that rounding does not touch (counts, bits, file sizes)
must agree to the digits that tables have; timings are left out. A table that the reference lacks is
listed and is no difference. Exit status: 0 nothing differs, 1 something does, 2 wrong options.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.machine import run_command
from qartsr_lib.study.results import parse_cells, read_cells
from tests.benchmarks.noise_floor import DIGITS, STATIC, TRAINED, Floor, floor_file

CHECKOUT = Path(__file__).resolve().parents[2]
#: Columns that say which row it is, of all tables.
KEYS = (
    *("id", "check", "rule", "dataset", "backbone", "timestep", "method", "bits", "metric", "seed", "image"),
    *("variant", "layer", "law", "version", "order", "loss", "trq", "rpq", "et", "model", "part", "block"),
    *("component", "runtime", "factor", "pass", "format", "setting", "eight_bit", "ranges", "zero_point", "quantized"),
)
#: Timings, prose, and names of records.
LEFT_OUT = (
    *("ms", "latency_ms", "latency_ratio_vs_fp32", "latency_ratio_vs_bf16", "ratio_lowest", "ratio_highest", "peak_MB"),
    *("run_id", "run_ids", "note", "claim", "where", "paper_evidence", "ours", "test", "missing"),
)
#: Column -> the quantity whose floor it has; "" where none is measured, so that those of its bit width serve.
FLOORS = {name: "PSNR" for name in ("psnr", "psnr_y", "psnr_fp", "psnr_hr")} | {
    "feature_distance": "VAE-FD",
    "image_loss": "",
    "mean_grey_diff": "",
    "max_grey_diff": "",
    "constant": "error_z_h",
    "off_by": "error_z_h",
    "effect": "",
    "error": "",
    "p": "",
    "p_corrected": "",
}
FULL = "W32A32"
#: Beginnings of the names of methods that do not train, as tables and registries write them.
WITHOUT_TRAINING = ("fp", "osediff", "bicubic", "maxmin", "svdquant")

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Difference:
    """One line of the answer.

    Attributes:
        table: file stem.
        kind: "absent" (a row or table of the reference), "new", or "beyond" (its tolerance).
            A new table has nothing to differ from, see `counts`.
        row: what identifies the row; "" for a whole table.
        column, was, now, tolerance: of a number or text that differs.
    """

    table: str
    kind: str
    row: str = ""
    column: str = ""
    was: str = ""
    now: str = ""
    tolerance: float = math.nan

    @property
    def counts(self) -> bool:
        """Whether this makes the tables differ: all but a whole table that is new."""
        return self.kind != "new" or bool(self.row)

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.table, self.row) if part)
        if self.kind != "beyond":
            return f"{self.kind:7} {place}"
        allowed = "" if math.isnan(self.tolerance) else f" (tolerance {self.tolerance:.3g})"
        return f"{self.kind:7} {place}: {self.column} {self.was or 'n/a'} -> {self.now or 'n/a'}{allowed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's text for the exit status."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.measure_floor:
        from tests.benchmarks.noise_measurement import measure_and_write  # takes seconds to load

        print(measure_and_write())
        return 0
    floor = Floor.read(options.floor or floor_file(CHECKOUT / "results"))
    return max([_report(profile, options, floor) for profile in _profiles(options)], default=0)


def differences(now: Tables, reference: Tables, floor: Floor) -> list[Difference]:
    """Everything that differs between two sets of tables (file stem -> text cells).

    Raises:
        QartsrError: a table whose rows cannot be told apart by the columns in KEYS.
    """
    found = [Difference(name, "absent") for name in reference if name not in now]
    found += [Difference(name, "new") for name in now if name not in reference]
    for name in reference:
        if name in now:
            found += _in_table(name, now[name], reference[name], floor)
    return found


def read_folder(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a folder as text."""
    return {path.stem: read_cells(path) for path in sorted(folder.glob("*.csv"))}


def read_revision(revision: str, profile: str, checkout: Path = CHECKOUT) -> dict[str, pd.DataFrame]:
    """The tables of results/<profile> as committed.

    Raises:
        QartsrError: no git here, or no such revision.
    """
    folder = f"results/{profile}/"
    files = _git(checkout, "ls-tree", "--name-only", revision, folder).splitlines()
    tables = [file for file in files if file.endswith(".csv")]
    return {Path(file).stem: parse_cells(file, _git(checkout, "show", f"{revision}:{file}")) for file in tables}


def _in_table(name: str, now: pd.DataFrame, reference: pd.DataFrame, floor: Floor) -> Iterator[Difference]:
    keys = [column for column in KEYS if column in reference and column in now]
    ours, theirs = _by_key(name, now, keys), _by_key(name, reference, keys)
    yield from (Difference(name, "absent", _words(key)) for key in theirs if key not in ours)
    yield from (Difference(name, "new", _words(key)) for key in ours if key not in theirs)
    for column in sorted(set(reference.columns) ^ set(now.columns)):
        yield Difference(name, "new" if column in now else "absent", f"column {column}")
    columns = [column for column in reference if column in now and column not in keys and column not in LEFT_OUT]
    for key, row in theirs.items():
        for column in columns if key in ours else []:
            was, new = row[column], ours[key][column]
            allowed = _tolerance(row, column, floor)
            if not _equal(was, new, allowed):
                yield Difference(name, "beyond", _words(key), column, was, new, allowed)


def _tolerance(row: Mapping[str, str], column: str, floor: Floor) -> float:
    """The largest difference allowed; NaN for text."""
    size = abs(_number(row[column]))
    of_metric = "metric" in row and column in ("value", "ci_low", "ci_high")
    quantity = row["metric"] if of_metric else FLOORS.get(column, column)
    if math.isnan(size):
        return math.nan
    if not (of_metric or column in FLOORS or floor.measured(quantity)):
        return DIGITS * size
    level = "image" if "image" in row or column.startswith("ci_") else "table"
    return floor.tolerance(_kind(row), row.get("bits") or FULL, quantity, level, size)


def _kind(row: Mapping[str, str]) -> str:
    if "steps" in row:
        return TRAINED if _number(row["steps"]) > 0 else STATIC
    return STATIC if row.get("method", "fp").lower().startswith(WITHOUT_TRAINING) else TRAINED


def _equal(was: str, now: str, tolerance: float) -> bool:
    if was == now:
        return True
    return abs(_number(was) - _number(now)) <= tolerance  # False where one is not a number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _by_key(name: str, table: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    rows = table.to_dict("records")
    found = {tuple(row[column] for column in keys): row for row in rows}
    if len(found) != len(rows):
        count = Counter(tuple(row[column] for column in keys) for row in rows)
        twice = _words(count.most_common(1)[0][0])
        raise QartsrError(f"{name}.csv: two rows are the same ({twice}); add what tells them apart to compare.KEYS")
    return found


def _words(key: Sequence[str]) -> str:
    return " ".join(part for part in key if part)


def _git(checkout: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, encoding="utf-8")
    except OSError as error:
        raise QartsrError("git is not installed; name a folder of tables by --reference") from error
    if done.returncode:
        raise QartsrError(
            f"git {' '.join(words)}: {done.stderr.strip().splitlines()[-1]}; or name a folder by --reference"
        )
    return done.stdout


def _profiles(options: argparse.Namespace) -> list[str]:
    """The profile asked for, else every one with tables."""
    if options.profile:
        return [options.profile]
    return sorted({path.parent.name for path in paths.results_dir("").glob("*/*.csv")})


def _report(profile: str, options: argparse.Namespace, floor: Floor) -> int:
    now = read_folder(paths.results_dir(profile))
    folder = Path(options.reference)
    reference = read_folder(folder) if folder.is_dir() else read_revision(options.reference, profile)
    if not now and not reference:
        raise QartsrError(f"{paths.results_dir(profile)}: no tables, and none in {options.reference}; check --profile")
    found = differences(now, reference, floor)
    shown = found if options.all else found[: options.lines]
    print("\n".join([f"profile {profile}: {len(reference)} reference tables", *map(str, shown)]))
    if len(found) > len(shown):
        print(f"... and {len(found) - len(shown)} more (--all)")
    counts = Counter(item.kind for item in found)
    print(f"{counts['absent']} absent, {counts['new']} new, {counts['beyond']} beyond the noise floor")
    return int(any(item.counts for item in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", help="folder under results/ (default: each that has tables)")
    parser.add_argument("--reference", default="HEAD", help="git revision, or folder of tables (default: HEAD)")
    parser.add_argument("--floor", type=Path, help="noise floor (default: the committed results/noise_floor.csv)")
    parser.add_argument("--lines", type=int, default=40, help="differences shown (default: 40)")
    parser.add_argument("--all", action="store_true", help="show every difference")
    parser.add_argument(
        "--measure-floor", action="store_true", help="measure the noise floor anew (some 20 minutes, resumable)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
