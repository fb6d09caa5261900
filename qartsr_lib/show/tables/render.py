"""One table, long rows to text: wide beside the paper's values, as Markdown and HTML; and the words above it."""

from __future__ import annotations

import html
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.files import write_text
from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.study.paper import BICUBIC_LABEL, paper_table, paper_values
from qartsr_lib.study.results import read_cells

CAPTIONS = Path(__file__).resolve().parents[1] / "assets" / "captions.toml"
DECIMALS = {"PSNR": 2, "PSNR-RGB": 2, "SSIM": 4, "NIQE": 3, "MUSIQ": 2, "PIQE": 2, "CIEDE2000": 2}
KEYS = ("dataset", "bits", "timestep", "method")
#: Column of run ids: links on the page, left out in Markdown.
RUN = "run"
#: Words of a table -> what must stand above it, for a reader who sees this one file.
STAND_INS = {
    "embedded": "Models named embedded are small ones of this study's own: none of their numbers is OSEDiff's.",
    "(paper)": "Columns marked (paper) are the paper's, of OSEDiff; those of RealSR where it lacks the data set.",
    "VAE-FD": "VAE-FD is a distance of features of this study's own encoder, not LPIPS.",
}
Sections = Sequence[tuple[str, pd.DataFrame]]


def wide(
    results: pd.DataFrame,
    metrics: Sequence[str],
    compare: str | Sequence[str] = "timestep",
    keys: Sequence[str] = KEYS,
) -> pd.DataFrame:
    """Long results of one backbone -> a row per value of `keys`, a text column per metric, and RUN where it is known.

    A value is followed by its interval; the best is bold of the rows that differ in `compare` alone, bicubic
    interpolation and what failed on some images left out; an unavailable or infinite value is n/a. Rows keep the order
    of `results`. Fewer images than others' are told.
    `compare`: "timestep" (Table 1), "method" (Table 3), or several of `keys`.
    """
    compared = [compare] if isinstance(compare, str) else list(compare)
    results = results.reset_index(drop=True)
    fixed = [*(key for key in keys if key not in compared), "metric"]
    best, whole = _best(results, fixed), set(competing(results, fixed).index)
    texts = [cell(row) for row in results.itertuples(index=False)]
    for place in set(results.index[results["value"].map(is_number)]) - whole:
        texts[place] += f" ({results.at[place, 'n_images']} images)"
    shown = results.assign(text=[f"**{text}**" if place in best else text for place, text in enumerate(texts)])
    index = [*keys, "run_id"] if "run_id" in results else list(keys)
    cells = shown.pivot_table(index=index, columns="metric", values="text", aggfunc="first")
    table = shown[index].drop_duplicates().merge(cells.reset_index(), on=index).fillna("")
    table = table.rename(columns={"run_id": RUN})
    return table[[*keys, *(name for name in (*metrics, RUN) if name in table)]]


def add_paper(
    table: pd.DataFrame, number: int, metrics: Sequence[str], keys: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Put the values of the paper's table `number`, where it has any, beside ours (`wide`): "<metric> (paper)".

    `keys`: our columns -> the transcription's; bits, timestep and method by default.
    """
    keys = keys or {key: key for key in KEYS[1:]}
    known = {name: paper_values(number, list(keys.values()), name) for name in table["dataset"].unique()}
    table = table.copy()
    for metric in [name for name in metrics if name in paper_table(number) and name in table]:
        values = [known[row.dataset].get((*(getattr(row, key) for key in keys), metric)) for row in table.itertuples()]
        if any(map(is_number, values)):
            table.insert(table.columns.get_loc(metric) + 1, f"{metric} (paper)", [shown(x, metric, "") for x in values])
    return table


def save_table(profile: str, name: str, sections: Sections, caption: str, note: str = "") -> Path:
    """Write figures/<profile>/<name>.md: caption, what stands in for the paper's models and metrics, sections, note."""
    parts = [f"### {title}\n\n{to_markdown(table)}" for title, table in sections]
    text = "\n".join([caption, *parts])
    return save_text(profile, name, "\n\n".join(filter(None, [caption, stand_ins(text), *parts, note])))


def stand_ins(text: str) -> str:
    """The sentences of STAND_INS that a table with this text needs; empty where nothing stands in."""
    return " ".join(sentence for word, sentence in STAND_INS.items() if word in text)


def save_text(profile: str, name: str, text: str) -> Path:
    """Write figures/<profile>/<name>.md."""
    return write_text(paths.figures_dir(profile) / f"{name}.md", text.rstrip("\n") + "\n")


def to_markdown(table: pd.DataFrame) -> str:
    """A text table as GitHub Markdown."""
    table = table.drop(columns=RUN, errors="ignore")
    lines = [list(table.columns), ["---"] * len(table.columns), *table.map(_text).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def to_html(table: pd.DataFrame, href: Callable[[str], str] = lambda run: "") -> str:
    """A text table as HTML, methods first, without the end tags that HTML leaves out.
    `href`: run id -> its link, "" for none."""
    runs = table[RUN] if RUN in table else [""] * len(table)
    table = table.drop(columns=RUN, errors="ignore").map(_text)
    table = table[sorted(table, key=lambda name: name != "method")]
    paper = [' class="paper"' if "(paper)" in name or "(its reduction)" in name else "" for name in table]
    head = "".join(f"<th{kind}>{html.escape(name)}" for name, kind in zip(table, paper, strict=True))
    links = [href(run) for run in runs]
    lines = [f"<table><thead><tr>{head}{'<th>record' if any(links) else ''}<tbody>"]
    for link, cells in zip(links, table.itertuples(index=False, name=None), strict=True):
        line = "".join(f"<td{kind}>{_marked(text)}" for text, kind in zip(cells, paper, strict=True))
        lines.append(f"<tr>{line}" + (f'<td><a href="{link}">run</a>' if link else ""))
    return "\n".join(lines) + "</table>"


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def _marked(text: str) -> str:
    """A cell as HTML: **bold** as <b>, an interval as <i>, which is short."""
    inner = re.sub(r" \[(-?[\d.]+), (-?[\d.]+)\]$", r"<i>\1 to \2</i>", html.escape(text.strip("*")))
    return f"<b>{inner}</b>" if text.startswith("**") else inner


def _best(results: pd.DataFrame, fixed: Sequence[str]) -> set[int]:
    """Places of the best value among rows that share `fixed`, where several compete."""
    usable = competing(results[results["value"].map(is_number) & (results["method"] != BICUBIC_LABEL)], fixed)
    groups = [(key[-1], group["value"].astype(float)) for key, group in usable.groupby(list(fixed), sort=False)]
    return {x.idxmin() if lower_is_better(metric) else x.idxmax() for metric, x in groups if len(x) > 1}


def competing(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Those over as many images as any other with the same `keys`; a method that diverged on some is over fewer."""
    if rows.empty or "n_images" not in rows:
        return rows
    return rows[rows["n_images"] == rows.groupby(list(keys))["n_images"].transform("max")]


def is_number(value: object) -> bool:
    """Whether there is a value, and it is finite."""
    return not pd.isna(value) and math.isfinite(value)


def shown(value: float | None, metric: str, missing: str = "n/a") -> str:
    """A value with its metric's decimals."""
    return f"{value:.{DECIMALS.get(metric, 4)}f}" if is_number(value) else missing


def cell(row) -> str:
    """A row's value with its interval, as it is shown: n/a when unavailable or not finite."""
    known = all(map(is_number, (row.value, row.ci_low, row.ci_high)))
    interval = f" [{shown(row.ci_low, row.metric)}, {shown(row.ci_high, row.metric)}]" if known else ""
    return shown(row.value, row.metric) + interval


@cache
def _captions() -> list[dict[str, str]]:
    return tomllib.loads(CAPTIONS.read_text(encoding="utf-8"))["caption"]


def read_frame(profile: str, name: str, texts: Sequence[str]) -> pd.DataFrame:
    """results/<profile>/<name>.csv with the columns `texts` as text and all others as numbers, NaN where empty.

    Raises:
        QartsrError: no such table, not a table, or without one of `texts`.
    """
    frame = read_cells(paths.results_dir(profile) / f"{name}.csv", texts)
    return frame.assign(**{column: pd.to_numeric(frame[column]) for column in frame.columns.difference(list(texts))})


def place(name: str) -> int:
    """Where a table or figure stands among the captions; last, where none is its own."""
    fitting = [number for number, item in enumerate(_captions()) if re.fullmatch(item["file"], name)]
    return (fitting or [len(_captions())])[0]


def words(name: str) -> tuple[str, str]:
    """(title, text) of a table or figure by its file's name; groups of the caption's pattern stand in braces."""
    number = place(name)
    if number == len(_captions()):
        return name.replace("_", " "), ""
    item = _captions()[number]
    parts = re.fullmatch(item["file"], name).groupdict()
    return item["title"].format(**parts), item["text"].format(**parts)
