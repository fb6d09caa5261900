"""README's tables from the study's result files: what stands between two comments there is written here.

<!-- table3 W4A4 -->
...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.show.tables.claims import counts, read_ledger
from qartsr_lib.show.tables.render import shown, to_markdown
from qartsr_lib.show.tables.setting import FULL, cell_title
from qartsr_lib.study.experiments.claims.ledger import PAPER, STUDY, VERDICTS
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL, OUTSIDE
from qartsr_lib.study.results import KEYS, rank, read_table

PROFILE, OURS = "study", "QArtSR"
MODELS = (("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1))
DATASETS = ("RealSR", "Urban100")
_BLOCK = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def psnr_table(bits: str) -> str:
    """PSNR-Y of every method of Table 3 at one bit width; the best is bold, methods that were not run are left out."""
    table = read_table(PROFILE, "table3")
    table = table[(table["metric"] == "PSNR") & (table["backbone"] != OUTSIDE) & table["bits"].isin([bits, "W32A32"])]
    columns = [(dataset, *model) for dataset in DATASETS for model in MODELS]
    values = table.set_index(["method", "dataset", "backbone", "timestep"])["value"]
    methods = sorted(set(table.loc[table["bits"] == bits, "method"]), key=lambda name: rank("method", name))

    def row(method: str, columns=columns) -> list[float]:
        return [values.get((method, *column), float("nan")) for column in columns]

    best = pd.DataFrame(map(row, methods)).max().tolist()
    enlarged = row(BICUBIC_LABEL, [(dataset, BICUBIC, 1) for dataset, *_ in columns])
    lines = [["full precision", *map(_shown, row(FULL))], ["*bicubic*", *(f"*{_shown(x)}*" for x in enlarged)]]
    for name in methods:
        cells = [f"**{_shown(x)}**" if x == highest else _shown(x) for x, highest in zip(row(name), best, strict=True)]
        lines.append([f"**{name}**" if name == OURS else name, *cells])
    # The data set stands at its first model.
    titles = [cell_title(f"`{backbone}`", timestep) for backbone, timestep in MODELS]
    heads = [f"{dataset}: {titles[0]}" if i == 0 else titles[i] for dataset in DATASETS for i in range(len(titles))]
    return to_markdown(pd.DataFrame(lines, columns=[bits, *heads])) + "\n"


def verdict_counts() -> str:
    """How many of the paper's claims, and of the study's own questions, have which verdict."""
    ledger = read_ledger(PROFILE)
    lines = []
    for title, asked_by in (("claims of the paper", PAPER), ("questions of our own", STUDY)):
        found = {verdict: number for verdict, number, _ in counts(ledger, asked_by)}
        lines.append([f"{sum(found.values())} {title}", *(found.get(verdict, 0) for verdict in VERDICTS)])
    return to_markdown(pd.DataFrame(lines, columns=["", *VERDICTS])) + "\n"


def outside_table() -> str:
    """PSNR-Y and LPIPS of bicubic, networks that people know, and our model in full precision and at 4 bits."""
    table = pd.concat([read_table(PROFILE, name) for name in ("table3", "table3_loss")])
    known = table["backbone"].isin([BICUBIC, OUTSIDE])
    table = table[known | ((table["backbone"] == MODELS[-1][0]) & (table["timestep"] == MODELS[-1][1]))]
    networks = table.loc[table["backbone"] == OUTSIDE, "method"].unique()
    titles = {BICUBIC_LABEL: "bicubic", **{name: name for name in networks}}
    titles |= {FULL: "ours, full precision", f"{OURS} [lpips+mse]": "ours, QArtSR W4A4"}
    values = table.drop_duplicates([*KEYS, "metric"], keep="last").set_index(["dataset", "metric", "method"])["value"]
    lines = [
        [f"{dataset}, {'PSNR-Y' if metric == 'PSNR' else metric}"]
        + [shown(values.get((dataset, metric, method), float("nan")), metric, "-") for method in titles]
        for dataset in DATASETS
        for metric in ("PSNR", "LPIPS")
    ]
    return to_markdown(pd.DataFrame(lines, columns=["", *titles.values()])) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "verdicts": verdict_counts,
    "outside": outside_table,
    **{f"table3 {bits}": partial(psnr_table, bits) for bits in ("W4A4", "W3A3", "W2A2")},
}


def filled(text: str) -> str:
    """README's text with every block made anew.

    Raises:
        QartsrError: a block of an unknown name, or results that are not there.
    """

    def block(match: re.Match[str]) -> str:
        if match["name"] not in BLOCKS:
            raise QartsrError(f"README.md: no table is called {match['name']!r}; known are {', '.join(BLOCKS)}")
        return match[1] + BLOCKS[match["name"]]() + match[3]

    return _BLOCK.sub(block, text)


def readme_files() -> tuple[Path, Path]:
    """README.md of the checkout and of its notebooks."""
    return paths.home() / "README.md", paths.home() / "notebooks" / "README.md"


def write() -> list[Path]:
    """Write the blocks of `readme_files` anew."""
    return [write_text(path, filled(path.read_text(encoding="utf-8"))) for path in readme_files()]


def _shown(value: float) -> str:
    return shown(value, "PSNR", "-")
