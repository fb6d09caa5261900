"""Rendered tables: long results by the contract, joined with the paper's values, as Markdown and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.files import write_text
from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.study.paper import BICUBIC_LABEL, PAPER_NAMES, paper_table

DECIMALS = {"PSNR": 2, "PSNR-RGB": 2, "SSIM": 4, "NIQE": 3, "MUSIQ": 2, "PIQE": 2}
KEYS = ["dataset", "bits", "timestep", "method"]
#: Words of a table -> what must stand above it, for a reader who sees this one file.
STAND_INS = {
    "embedded": "Models named embedded are small ones of this study's own: none of their numbers is OSEDiff's.",
    "(paper)": "Columns marked (paper) are the paper's, of OSEDiff; those of RealSR where it lacks the data set.",
    "VAE-FD": "VAE-FD is a distance of features of this study's own encoder, not LPIPS.",
}


def wide(results: pd.DataFrame, metrics: Sequence[str], compare: str | Sequence[str] = "timestep") -> pd.DataFrame:
    """Long results of one backbone -> one row per setting, one text column per metric.

    A value is followed by its interval; the best is bold of the rows that differ in `compare` alone, bicubic
    interpolation left out; an unavailable or infinite value is n/a. Rows keep the order of `results`.

    Args:
        compare: "timestep" (Table 1), "method" (Table 3), or several of `KEYS`.
    """
    compared = [compare] if isinstance(compare, str) else list(compare)
    fixed = [key for key in KEYS if key not in compared]
    best = _best(results, fixed, compared)
    lines: dict[tuple, dict[str, str]] = {}
    for row in results.itertuples(index=False):
        key = (row.dataset, row.bits, row.timestep, row.method)
        text = cell(row)
        winner = best.get((*(getattr(row, name) for name in fixed), row.metric))
        if winner == tuple(getattr(row, name) for name in compared):
            text = f"**{text}**"
        lines.setdefault(key, {})[row.metric] = text
    rows = [dict(zip(KEYS, key, strict=True)) | values for key, values in lines.items()]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=KEYS)
    return table[KEYS + [metric for metric in metrics if metric in table]].fillna("")


def add_paper(table: pd.DataFrame, number: int, metrics: Sequence[str], stand_in: str | None = None) -> pd.DataFrame:
    """Put the paper's values beside ours, in columns named "<metric> (paper)"; its rows go by our names (PAPER_NAMES).

    Args:
        table: what `wide` returned.
        number: of the paper's table.
        stand_in: show the paper's rows of this data set also beside data sets the paper does not
            have (they are other images and another model: for orientation only).
    """
    paper = paper_table(number)
    shown = [metric for metric in metrics if metric in paper and metric in table]
    known = set(paper["dataset"])
    paper = paper.assign(method=paper["method"].replace(PAPER_NAMES))
    joined = table.assign(_paper=[name if name in known else stand_in for name in table["dataset"]])
    paper = paper.rename(columns={"dataset": "_paper"} | {metric: f"{metric} (paper)" for metric in shown})
    keys = ["_paper", "bits", "timestep", "method"]
    joined = joined.merge(paper[keys + [f"{metric} (paper)" for metric in shown]], how="left", on=keys).drop(
        columns="_paper"
    )
    for metric in shown:
        column = joined.pop(f"{metric} (paper)")
        text = ["" if pd.isna(value) else f"{value:.{DECIMALS.get(metric, 4)}f}" for value in column]
        joined.insert(joined.columns.get_loc(metric) + 1, f"{metric} (paper)", text)
    return joined


def save_table(
    profile: str, name: str, sections: Sequence[tuple[str, pd.DataFrame]], caption: str, note: str = ""
) -> Path:
    """Write figures/<profile>/<name>.md and .html, both with the same caption, sections, and note below them.

    What stands in for the paper's models and metrics in it is named below the caption.

    Returns:
        The Markdown file.
    """
    folder = paths.figures_dir(profile)
    parts = [f"### {title}\n\n{to_markdown(table)}" for title, table in sections]
    stand_ins = named_stand_ins("\n".join([caption, *parts]))
    markdown = "\n\n".join(part for part in [caption, stand_ins, *parts, note] if part)
    body = "".join(f"<h3>{html.escape(title)}</h3>{to_html(table)}" for title, table in sections)
    header, footer = (f"<p>{html.escape(text)}</p>" if text else "" for text in (stand_ins, note))
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(name)}</title>{_CSS}"
    write_text(folder / f"{name}.html", f"{head}<p>{html.escape(caption)}</p>{header}{body}{footer}\n")
    return write_text(folder / f"{name}.md", markdown + "\n")


def named_stand_ins(text: str) -> str:
    """The sentences of STAND_INS that a table with this text needs; empty where nothing stands in."""
    return " ".join(sentence for word, sentence in STAND_INS.items() if word in text)


def save_text(profile: str, name: str, text: str) -> Path:
    """Write figures/<profile>/<name>.md."""
    return write_text(paths.figures_dir(profile) / f"{name}.md", text.rstrip("\n") + "\n")


def to_markdown(table: pd.DataFrame) -> str:
    """A text table as GitHub Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.map(_text).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_html(table: pd.DataFrame) -> str:
    """A text table as HTML; **bold** cells become <b>."""
    escaped = table.map(lambda cell: _bold(html.escape(_text(cell))))
    return escaped.to_html(index=False, escape=False, border=0)


def _text(cell: object) -> str:
    return "" if pd.isna(cell) else str(cell)


def _bold(cell: str) -> str:
    return f"<b>{cell[2:-2]}</b>" if cell.startswith("**") and cell.endswith("**") else cell


def _best(results: pd.DataFrame, fixed: Sequence[str], compared: Sequence[str]) -> dict[tuple, tuple]:
    """(fixed keys..., metric) -> the values of `compared` in the best row, where several are compared."""
    best = {}
    usable = results[results["value"].map(is_number) & (results["method"] != BICUBIC_LABEL)]
    for key, group in usable.groupby([*fixed, "metric"], sort=False):
        if len(group) > 1:
            values = group["value"].astype(float)
            index = values.idxmin() if lower_is_better(key[-1]) else values.idxmax()
            best[key] = tuple(group.loc[index, list(compared)])
    return best


def is_number(value: object) -> bool:
    """Whether there is a value, and it is finite."""
    return not pd.isna(value) and math.isfinite(value)


def cell(row) -> str:
    """A row's value with its interval, as it is shown: n/a when unavailable or not finite."""
    if not is_number(row.value):
        return "n/a"
    decimals = DECIMALS.get(row.metric, 4)
    if not (is_number(row.ci_low) and is_number(row.ci_high)):
        return f"{row.value:.{decimals}f}"
    return f"{row.value:.{decimals}f} [{row.ci_low:.{decimals}f}, {row.ci_high:.{decimals}f}]"


_CSS = """<style>
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
</style>"""
