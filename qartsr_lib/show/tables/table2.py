"""Rendered sections of Table 2: both rules beside the paper, the full-precision row, where the cost sits."""

from __future__ import annotations

import pandas as pd

from qartsr_lib.study.paper import paper_table

Sections = list[tuple[str, pd.DataFrame]]
#: Column of results, its heading, its decimals.
QUANTITIES = (("params", "M", "Params"), ("ops", "G", "Ops"))


def paper_rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rule `paper` beside what the paper prints, and beside what its reduction in percent implies.

    Args:
        table: counting.measure_table2.
    """
    printed = paper_table(2).set_index("bits")
    rows = []
    for row in table[table["rule"] == "paper"].itertuples():
        line = {"bits": row.bits}
        known = printed.loc[row.bits] if row.bits in printed.index else None
        for name, unit, heading in QUANTITIES:
            ours, reduction = getattr(row, f"{name}_{unit}"), getattr(row, f"{name}_reduction_pct")
            residual = getattr(row, f"{name}_residual_{unit}")
            line[f"{heading}, {unit}"] = f"{ours:,.2f}"
            line[f"{heading} (paper)"] = "" if known is None else f"{known[f'{name}_{unit}']:,.0f}"
            line[f"{heading} (its reduction)"] = "" if known is None else _implied(printed, row.bits, name, unit)
            line[f"{heading}, residual"] = "" if pd.isna(residual) else f"{residual:+.2f}"
            line[f"{heading} reduction, %"] = f"{reduction:.2f}"
            line[f"{heading} reduction (paper)"] = "" if known is None else f"{known[f'{name}_reduction_pct']:.2f}"
        rows.append(line)
    return pd.DataFrame(rows)


def honest_rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rule `honest`: every method, with its distance to the paper's integers where there are some."""
    honest = table[table["rule"] == "honest"]
    columns = {"method": list(honest["method"]), "bits": list(honest["bits"])}
    for name, unit, heading in QUANTITIES:
        columns[f"{heading}, {unit}"] = [f"{value:,.2f}" for value in honest[f"{name}_{unit}"]]
        columns[f"{heading} reduction, %"] = [f"{value:.2f}" for value in honest[f"{name}_reduction_pct"]]
        residuals = honest[f"{name}_residual_{unit}"]
        columns[f"{heading} - paper's"] = ["" if pd.isna(value) else f"{value:+,.1f}" for value in residuals]
    return pd.DataFrame(columns)


def part_shares(parts: pd.DataFrame) -> pd.DataFrame:
    """Weights and operations of every part of every network, with shares of the whole.

    Args:
        parts: counting.measure_parts.
    """
    columns = ["layers", "weights_M", "params_M", "layer_ops_G", "attention_ops_G", "elementwise_ops_G"]
    sums = parts.groupby(["model", "part"], sort=False)[columns].sum()
    totals = sums.groupby("model", sort=False).sum()
    totals.index = pd.MultiIndex.from_tuples([(model, "sum") for model in totals.index], names=sums.index.names)
    frames = []
    for model, total in totals.groupby("model", sort=False):
        frame = pd.concat([sums.loc[[model]], total])
        for column, name in (("weights_M", "weights, %"), ("layer_ops_G", "layer ops, %")):
            frame[name] = 100 * frame[column] / float(total[column].iloc[0])
        frames.append(frame)
    shown = pd.concat(frames).reset_index()
    names = {
        "weights_M": "weights, M",
        "params_M": "parameters, M",
        "layer_ops_G": "layer ops, G",
        "attention_ops_G": "attention ops, G",
        "elementwise_ops_G": "elementwise ops, G",
    }
    order = ["model", "part", "layers", "weights_M", "weights, %", "params_M"]
    order += ["layer_ops_G", "layer ops, %", "attention_ops_G", "elementwise_ops_G"]
    digits = {column: 3 for column in names} | {"weights, %": 1, "layer ops, %": 1}
    return shown[order].round(digits).rename(columns=names)


def component_table(components: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` ("params_M" or "ops_G") of the honest rule's components, one row per method and bit width."""
    table = components.pivot_table(index=["method", "bits"], columns="component", values=column, sort=False)
    return table.assign(sum=table.sum(axis=1)).round(2).rename_axis(columns=None).reset_index()


def table2_sections(
    table: pd.DataFrame, residual: pd.DataFrame, parts: pd.DataFrame, components: pd.DataFrame
) -> Sections:
    """Everything that figures/<profile>/table2.md holds.

    Args:
        table, parts, components: counting.measure_table2, measure_parts, measure_components.
        residual: counting.full_precision_residual.
    """
    text = residual.assign(
        **{column: [f"{value:,.2f}" for value in residual[column]] for column in ("params_M", "ops_G")}
    )
    return [
        ("Rule `paper`, and the paper's numbers", paper_rule_table(table)),
        ("Rule `honest`", honest_rule_table(table)),
        ("What the printed full-precision row consists of", text),
        ("Where weights and operations sit", part_shares(parts).astype(str)),
        ("Rule `honest`, storage by component, M", component_table(components, "params_M").astype(str)),
        ("Rule `honest`, operations by component, G", component_table(components, "ops_G").astype(str)),
    ]


def _implied(printed: pd.DataFrame, bits: str, name: str, unit: str) -> str:
    """The value that the paper's rounded reduction stands for, finer than its rounded integer."""
    full = printed.loc["W32A32", f"{name}_{unit}"]
    return f"{full * (1 - printed.loc[bits, f'{name}_reduction_pct'] / 100):,.2f}"
