"""The README's tables from the study's result files: what stands between two comments there is written here.

    <!-- table3 W4A4 -->
    ...
    <!-- end -->

`python -m qartsr_lib.show.readme` writes them (`make report` does so too), a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.show.tables import render as tables
from qartsr_lib.show.tables.pictures import OURS
from qartsr_lib.show.tables.settings import FULL, cell_title
from qartsr_lib.study import paper as papers
from qartsr_lib.study.contrasts import NOT_QUANTIZED
from qartsr_lib.study.experiments.claims.ledger import STUDY, VERDICTS, count_verdicts
from qartsr_lib.study.result_cells import rank
from qartsr_lib.study.results import read_measurement, read_table

PROFILE = "study"
MODELS = (("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1))
DATASETS = ("RealSR", "Urban100")
#: Its row: backbone, T, method, bits.
BICUBIC = (papers.BICUBIC, 1, "Bicubic", NOT_QUANTIZED)
NAN = float("nan")
_BLOCK = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def psnr_table(bits: str) -> str:
    """PSNR-Y of every method of Table 3 at one bit width; the best is bold, methods that were not run are left out."""
    table = read_table(PROFILE, "table3")
    table = table[(table["metric"] == "PSNR") & (table["backbone"] != papers.OUTSIDE)]
    values = table.set_index(["dataset", "backbone", "timestep", "method", "bits"])["value"]
    models = [(dataset, *model) for dataset in DATASETS for model in MODELS]
    methods = sorted(set(table.loc[table["bits"] == bits, "method"]), key=lambda name: rank("method", name))
    rows = {name: [values.get((*model, name, bits), NAN) for model in models] for name in methods}
    best = pd.DataFrame(rows).max(axis=1).tolist()
    full = [values.get((*model, FULL, NOT_QUANTIZED), NAN) for model in models]
    enlarged = [values.get((model[0], *BICUBIC), NAN) for model in models]
    lines = [["full precision", *map(_shown, full)], ["*bicubic*", *(f"*{_shown(value)}*" for value in enlarged)]]
    for name, row in rows.items():
        cells = [f"**{_shown(x)}**" if x == highest else _shown(x) for x, highest in zip(row, best, strict=True)]
        lines.append([f"**{name}**" if name == OURS else name, *cells])
    return tables.to_markdown(pd.DataFrame(lines, columns=[bits, *_titles()])) + "\n"


def verdict_counts() -> str:
    """How many of the paper's claims, and of the study's own questions, have which verdict."""
    claims = read_measurement(PROFILE, "claims", ("asked_by", "verdict", "measured", "checks"))
    own = claims["asked_by"] == STUDY
    lines = []
    for title, part in (("claims of the paper", claims[~own]), ("questions of our own", claims[own])):
        found = count_verdicts(part[["verdict", "measured", "checks"]].itertuples(index=False, name=None))
        counts = {verdict: number for verdict, number, _ in found}
        lines.append([f"{len(part)} {title}", *(counts.get(verdict, 0) for verdict in VERDICTS)])
    return tables.to_markdown(pd.DataFrame(lines, columns=["", *VERDICTS])) + "\n"


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
    models = [cell_title(f"`{backbone}`", timestep) for backbone, timestep in MODELS]
    return [f"{dataset}: {model}" if model == models[0] else model for dataset in DATASETS for model in models]


def _shown(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"


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
