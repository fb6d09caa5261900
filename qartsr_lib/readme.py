"""The README's tables from the study's result files: what stands between two comments there is written here.

    <!-- table3 W4A4 -->
    ...
    <!-- end -->

`python -m qartsr_lib.readme` writes them (`make report` does so too), a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from qartsr_lib import paths, tables
from qartsr_lib.atomic import write_text
from qartsr_lib.claims.ledger import STUDY, VERDICTS
from qartsr_lib.errors import QartsrError
from qartsr_lib.result_cells import rank
from qartsr_lib.results import read_measurement, read_table

PROFILE = "study"
MODELS = (("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1))
DATASETS = ("RealSR", "Urban100")
FULL, OURS = ("FP", "W32A32"), "QArtSR"
_BLOCK = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def psnr_table(bits: str) -> str:
    """PSNR-Y of every method of Table 3 at one bit width; the best is bold, methods that were not run are left out."""
    table = read_table(PROFILE, "table3")
    table = table[(table["metric"] == "PSNR") & table["dataset"].isin(DATASETS)]
    columns = [(dataset, *model) for dataset in DATASETS for model in MODELS]
    lines = [
        f"| {bits} | " + " | ".join(_titles()) + " |",
        "|---" * (len(columns) + 1) + "|",
        _line("full precision", _values(table, FULL, columns)),
        _line("*bicubic*", _values(table, None, columns), style="*"),
    ]
    width = table[(table["bits"] == bits) & (table["backbone"] != tables.OUTSIDE)]
    methods = sorted(width["method"].drop_duplicates(), key=lambda name: rank("method", name))
    rows = {name: _values(width, (name, bits), columns) for name in methods}
    best = pd.DataFrame(rows).max(axis=1).tolist()
    for name, values in rows.items():
        lines.append(_line(f"**{name}**" if name == OURS else name, values, best))
    return "\n".join(lines) + "\n"


def verdict_counts() -> str:
    """How many of the paper's claims, and of the study's own questions, have which verdict."""
    claims = read_measurement(PROFILE, "claims", ("asked_by", "verdict"))
    own = claims["asked_by"] == STUDY
    lines = ["| | " + " | ".join(VERDICTS) + " |", "|---" * (len(VERDICTS) + 1) + "|"]
    for title, part in (("claims of the paper", claims[~own]), ("questions of our own", claims[own])):
        counts = [str(int((part["verdict"] == verdict).sum())) for verdict in VERDICTS]
        lines.append(f"| {len(part)} {title} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "verdicts": verdict_counts,
    **{f"table3 {bits}": partial(psnr_table, bits) for bits in ("W4A4", "W3A3", "W2A2")},
}


def filled(text: str) -> str:
    """The README's text with every block made anew.

    Raises:
        QartsrError: a block of an unknown name, or results that are not there.
    """

    def block(match: re.Match[str]) -> str:
        if match["name"] not in BLOCKS:
            raise QartsrError(f"README.md: no table is called {match['name']!r}; known are {', '.join(BLOCKS)}")
        return match[1] + BLOCKS[match["name"]]() + match[3]

    return _BLOCK.sub(block, text)


def _titles() -> list[str]:
    """One per column; the data set stands at its first model."""
    models = [f"`{backbone}`, T = {timestep}" for backbone, timestep in MODELS]
    return [f"{dataset}: {model}" if model == models[0] else model for dataset in DATASETS for model in models]


def _values(table: pd.DataFrame, row: tuple[str, str] | None, columns: list[tuple[str, str, int]]) -> list[float]:
    """PSNR-Y of (method, bits) in each column, of bicubic for None; NaN where there is none."""
    found = []
    for dataset, backbone, timestep in columns:
        part = table[table["dataset"] == dataset]
        if row is None:
            part = part[part["backbone"] == tables.BICUBIC]
        else:
            part = part[(part["backbone"] == backbone) & (part["timestep"] == timestep)]
            part = part[(part["method"] == row[0]) & (part["bits"] == row[1])]
        found.append(float(part["value"].iloc[0]) if len(part) else float("nan"))
    return found


def _line(name: str, values: list[float], best: list[float] | None = None, style: str = "") -> str:
    cells = []
    for index, value in enumerate(values):
        mark = "**" if best is not None and value == best[index] else style
        cells.append("-" if pd.isna(value) else f"{mark}{value:.2f}{mark}")
    return f"| {name} | " + " | ".join(cells) + " |"


def readme_file() -> Path:
    """README.md of the checkout."""
    return paths.home() / "README.md"


def main() -> int:
    """The command line: exit status 0, or 2 with one line that says what to mend."""
    path = readme_file()
    try:
        if not path.is_file():
            raise QartsrError(f"{path}: no such file; run this in a checkout")
        write_text(path, filled(path.read_text(encoding="utf-8")))
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: tables written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
