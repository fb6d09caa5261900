"""Rendered sections of Tables 3 and 4, rank of a method, and paired differences between two rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib import tables
from qartsr_lib.stats import paired_bootstrap

Sections = list[tuple[str, pd.DataFrame]]
STAGES = ["trq", "rpq", "et", "order", "loss", "version"]
_PAPER_KEYS = {"TRQ": "trq", "RPQ_star": "rpq", "ET": "et"}


def table3_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set, backbone and T, the best method in bold; the paper's values in its own setting.

    The paper runs the rivals on T = 1000 and QArtSR on T = 1: `embedded` has these rows, beside those
    that the paper left out.
    """
    sections = []
    for (dataset, backbone, timestep), part in results.groupby(["dataset", "backbone", "timestep"], sort=False):
        table = tables.wide(part, metrics, compare="method")
        if backbone != "embedded-scaled":
            table = tables.add_paper(table, 3, metrics, stand_in="RealSR")
        bits = part.drop_duplicates(["bits", "method"]).set_index(["bits", "method"])
        extra = [bits.loc[(row.bits, row.method)] for row in table.itertuples()]
        table.insert(2, "bits/weight", [f"{row.w_bits_effective:.2f}" for row in extra])
        table.insert(3, "images", [str(int(row.steps)) for row in extra])
        sections.append((f"{dataset}, {backbone}, T = {timestep}", table.drop(columns=["dataset", "timestep"])))
    return sections


def table4_sections(results: pd.DataFrame, metrics: Sequence[str]) -> Sections:
    """One section per data set, backbone, bit width and version; the paper's values beside its own version."""
    sections = []
    keys = ["dataset", "backbone", "bits", "version"]
    paper = tables.paper_table(4).rename(columns=_PAPER_KEYS)
    for (dataset, backbone, bits, version), part in results.groupby(keys, sort=False):
        lines: dict[tuple, dict[str, str]] = {}
        for row in part[part["bits"] != "W32A32"].itertuples(index=False):
            key = (row.timestep, row.method, row.trq, row.rpq, row.et, row.order, row.loss, row.steps)
            lines.setdefault(key, {})[row.metric] = tables.cell(row)
        names = ["timestep", "method", *STAGES[:-1], "images"]
        table = pd.DataFrame([dict(zip(names, key, strict=True)) | values for key, values in lines.items()])
        if table.empty:
            continue
        if version == "paper" and backbone != "embedded-scaled":
            known = paper[(paper["dataset"] == (dataset if dataset in set(paper["dataset"]) else "RealSR"))]
            known = known[known["bits"] == bits].set_index(["trq", "rpq", "et"])
            for metric in [m for m in metrics if m in known and m in table]:
                found = [known[metric].get((r.trq, r.rpq, r.et)) for r in table.itertuples()]
                text = ["" if value is None else f"{value:.{tables.DECIMALS.get(metric, 4)}f}" for value in found]
                table.insert(table.columns.get_loc(metric) + 1, f"{metric} (paper)", text)
        shown = [c for c in table if c in names or c.removesuffix(" (paper)") in metrics]
        sections.append((f"{dataset}, {backbone}, {bits}, version {version}", table[shown].fillna("").astype(str)))
    return sections


def paired_differences(
    per_image: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str = "PSNR", timestep: int = 1
) -> pd.DataFrame:
    """`metric` of the first method minus the second, paired over images (means over seeds), with intervals.

    Args:
        per_image: `TableRun.per_image`.
        pairs: (method, method) by their names in the table.
        timestep: rows of this T only.
    """
    values = per_image[(per_image["metric"] == metric) & (per_image["timestep"] == timestep)].dropna(subset=["value"])
    rows = []
    for key, group in values.groupby(["dataset", "backbone", "bits"], sort=False):
        table = group.pivot_table(index="image", columns="method", values="value")
        for first, second in pairs:
            if {first, second} <= set(table.columns):
                mean, low, high = paired_bootstrap(table[first].to_numpy(), table[second].to_numpy())
                rows.append((*key, f"{first} - {second}", mean, low, high, len(table)))
    columns = ["dataset", "backbone", "bits", "difference", metric, "ci_low", "ci_high", "n_images"]
    return pd.DataFrame(rows, columns=columns).round(3)


def ranks(results: pd.DataFrame, metric: str = "PSNR") -> pd.DataFrame:
    """Place of every method by `metric`: rows (dataset, backbone, T, bits), columns methods, 1 is best."""
    cells = results[(results["metric"] == metric) & (results["method"] != "FP")].dropna(subset=["value"])
    ascending = metric in tables.LOWER_IS_BETTER
    keys = ["dataset", "backbone", "timestep", "bits"]
    place = cells.groupby(keys, sort=False)["value"].rank(ascending=ascending, method="min").astype(int)
    return cells.assign(place=place).pivot_table(index=keys, columns="method", values="place", sort=False)
