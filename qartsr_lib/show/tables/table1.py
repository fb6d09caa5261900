"""Rendered sections of the quality table and Table 1, the timestep effect and the knobs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib.show.tables import render as tables
from qartsr_lib.study.stats import mean_interval

Sections = list[tuple[str, pd.DataFrame]]


def quality_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set: bicubic and full precision, a column per metric."""
    sections = []
    for dataset, part in results.groupby("dataset", sort=False):
        rows = [
            tables.wide(group, metrics).assign(backbone=backbone)
            for backbone, group in part.groupby("backbone", sort=False)
        ]
        table = pd.concat(rows, ignore_index=True).fillna("")
        # Bold marks compare timesteps; here they would set recipes apart that are not compared.
        columns = ["backbone", "timestep", *[metric for metric in metrics if metric in table]]
        sections.append((dataset, table[columns].astype(str).replace(r"\*\*", "", regex=True)))
    return sections


def table1_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set and backbone, the paper's values beside ours."""
    sections = []
    for dataset, on_dataset in results.groupby("dataset", sort=False):
        for backbone, part in on_dataset.groupby("backbone", sort=False):
            table = tables.add_paper(tables.wide(part, metrics), 1, metrics, stand_in="RealSR")
            sections.append((f"{dataset}, {backbone}", table.drop(columns="dataset")))
    return sections


def timestep_effect(per_image: pd.DataFrame, metric: str = "PSNR", high: int = 1000, low: int = 1) -> pd.DataFrame:
    """`metric` at timestep `low` minus at `high`, paired over images, with a bootstrap interval."""
    values = per_image[per_image["metric"] == metric].dropna(subset=["value"])
    rows = []
    for key, group in values.groupby(["dataset", "backbone", "method", "bits"], sort=False):
        table = group.pivot_table(index="image", columns="timestep", values="value")
        if {high, low} <= set(table.columns):
            mean, ci_low, ci_high = mean_interval(table[low] - table[high])
            rows.append((*key, mean, ci_low, ci_high, len(table)))
    columns = ["dataset", "backbone", "method", "bits", f"{metric} gain", "ci_low", "ci_high", "n_images"]
    return pd.DataFrame(rows, columns=columns).round(3)


def part_table(results: pd.DataFrame) -> pd.DataFrame:
    """PSNR with one part quantized: rows (backbone, bits, method), columns T."""
    values = results[results["metric"] == "PSNR"]
    table = values.pivot_table(index=["backbone", "bits", "method"], columns="timestep", values="value", sort=False)
    return table.round(2)


def knob_table(results: pd.DataFrame) -> pd.DataFrame:
    """PSNR of every knob: rows methods, columns (bits, timestep)."""
    values = results[results["metric"] == "PSNR"]
    table = values.pivot_table(index="method", columns=["bits", "timestep"], values="value", sort=False)
    return table.round(2)
