"""Rendered sections of the quality table and of Tables 1, 3 and 4; ranks, the timestep effect and the knobs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.show.tables.render import add_paper, competing, is_number, wide
from qartsr_lib.show.tables.setting import PAPERS_RECIPE, Setting, table_parts
from qartsr_lib.study.paper import NO_MODEL, papers_rows
from qartsr_lib.study.results import rank
from qartsr_lib.study.stats import mean_interval

Sections = list[tuple[str, pd.DataFrame]]
TABLE4_NOTE = (
    "The paper's rows TRQ+ET and TRQ+RPQ* at W4A4 (25.17 and 24.79 dB) may be swapped in the transcription used here: "
    "the check marks of its Table 4 could not be read with certainty."
)
_STAGES = ("trq", "rpq", "et", "order", "loss")
_PAPERS_STAGES = {"bits": "bits", "trq": "TRQ", "rpq": "RPQ_star", "et": "ET"}


def with_values(results: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Those of `metrics` that have a number in any row: the others get no column."""
    known = set(results.loc[results["value"].map(is_number), "metric"])
    return [metric for metric in metrics if metric in known]


def absent_note(results: pd.DataFrame) -> str:
    """One line that names the metrics without a number in any row; "" where every one has some."""
    names = list(results["metric"].unique())
    absent = [name for name in names if name not in with_values(results, names)]
    where = f"({len(absent)} of {len(names)} metrics; the notes of the .csv say why)"
    return f"No values here for {', '.join(absent)} {where}." if absent else ""


def quality_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set: bicubic and full precision, a column per metric."""
    keys, metrics = ("backbone", "timestep"), with_values(results, metrics)
    # Nothing is bold: recipes are not compared.
    return [
        (str(dataset), wide(part, metrics, compare=(), keys=keys).astype(str))
        for dataset, part in results.groupby("dataset", sort=False)
    ]


def table1_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set and backbone, the paper's values beside ours."""
    metrics = with_values(results, metrics)
    return [
        (f"{dataset}, {backbone}", add_paper(wide(part, metrics), 1, metrics).drop(columns="dataset"))
        for (dataset, backbone), part in results.groupby(["dataset", "backbone"], sort=False)
    ]


def table3_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set and setting, the best method in bold; the paper's values in its own setting.

    The paper runs full precision and the rivals on T = 1000 and QArtSR on T = 1: where both models are
    there, the first section of a data set is this setting. Sections of one T have also what the paper
    left out; a column says which of their rows are the paper's. Outside systems and bicubic interpolation stand in
    every section.
    """
    metrics = with_values(results, metrics)
    return [
        (f"{dataset}, {setting.title}", _table3(rows, metrics, setting))
        for dataset, setting, rows in table_parts(results)
    ]


def _table3(rows: pd.DataFrame, metrics: Sequence[str], setting: Setting) -> pd.DataFrame:
    # methods that compete stand below each other
    rows = rows.sort_values("bits", key=lambda bits: bits.map(lambda width: rank("bits", width)), kind="stable")
    papers = papers_rows(3) if setting.backbone in PAPERS_RECIPE else set()
    own = ~rows["backbone"].isin(NO_MODEL)
    of_paper = [key in papers for key in zip(rows["method"], rows["timestep"], strict=True)]
    rows = rows.assign(
        T=rows["timestep"].astype(str).where(own, ""),
        **{
            "paper's setting": pd.Series(of_paper, rows.index).map({True: "yes", False: ""}),
            "bits/weight": rows["w_bits_effective"].where(own).map("{:.2f}".format).replace("nan", "n/a"),
            "images": rows["steps"].map("{:.0f}".format).replace("nan", "n/a"),
        },
    )
    keys = ("dataset", "timestep", "bits", "T", "method", "paper's setting", "bits/weight", "images")
    table = wide(rows, metrics, compare=[key for key in keys if key not in ("dataset", "bits")], keys=keys)
    if papers:
        table = add_paper(table, 3, metrics)
    return table.drop(columns=["dataset", "timestep"])


def table4_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set, backbone, bit width and version, the best in bold; the paper's values beside its own
    version."""
    sections, metrics = [], with_values(results, metrics)
    keys = ("dataset", "bits", "timestep", "method", *_STAGES, "steps")
    quantized = results[results["bits"] != "W32A32"]
    for (dataset, backbone, bits, version), part in quantized.groupby(
        ["dataset", "backbone", "bits", "version"], sort=False
    ):
        table = wide(part, metrics, compare=keys, keys=keys)
        if version == "paper" and backbone in PAPERS_RECIPE:
            table = add_paper(table, 4, metrics, _PAPERS_STAGES)
        table = table.drop(columns=["dataset", "bits"]).rename(columns={"steps": "images"})
        sections.append((f"{dataset}, {backbone}, {bits}, version {version}", table.astype(str)))
    return sections


def table4_note(sections: Sections) -> str:
    """What must stand below Table 4 where the paper's rows are beside ours; empty elsewhere."""
    return TABLE4_NOTE if any(column.endswith("(paper)") for _, table in sections for column in table) else ""


def ranks(results: pd.DataFrame, metric: str = "PSNR") -> pd.DataFrame:
    """Place of every method by `metric`: rows (dataset, backbone, T, bits), columns methods, 1 is best.

    Full precision, bicubic interpolation and outside systems have no place, nor has a method without a value or with
    one over fewer images than others: it may have failed on the hard ones.
    """
    cells = results[(results["metric"] == metric) & (results["method"] != "FP")]
    keys = ["dataset", "backbone", "timestep", "bits"]
    cells = competing(cells[~cells["backbone"].isin(NO_MODEL) & cells["value"].map(is_number)], keys)
    place = cells.groupby(keys, sort=False)["value"].rank(ascending=lower_is_better(metric), method="min").astype(int)
    return cells.assign(place=place).pivot_table(index=keys, columns="method", values="place", sort=False)


def timestep_effect(per_image: pd.DataFrame) -> pd.DataFrame:
    """PSNR at T = 1 minus at T = 1000, paired over images, with a bootstrap interval."""
    values = per_image[per_image["metric"] == "PSNR"].dropna(subset=["value"])
    rows = []
    for key, group in values.groupby(["dataset", "backbone", "method", "bits"], sort=False):
        table = group.pivot_table(index="image", columns="timestep", values="value")
        if {1000, 1} <= set(table.columns):
            gains = (table[1] - table[1000]).dropna()  # a method may have diverged on an image at one of them
            rows.append((*key, *mean_interval(gains), len(gains)))
    columns = ["dataset", "backbone", "method", "bits", "PSNR gain", "ci_low", "ci_high", "n_images"]
    return pd.DataFrame(rows, columns=columns).round(3)


def mean_psnr(results: pd.DataFrame, index: str | list[str], columns: str | list[str]) -> pd.DataFrame:
    """PSNR with rows and columns by these columns of the results."""
    values = results[results["metric"] == "PSNR"]
    return values.pivot_table(index=index, columns=columns, values="value", sort=False).round(2)
