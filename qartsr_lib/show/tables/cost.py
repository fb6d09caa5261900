"""What models take: Table 2 by both rules, deployment on one machine, and how long a table took to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from qartsr_lib.show.tables.render import RUN
from qartsr_lib.study.paper import OUTSIDE, paper_table

Sections = list[tuple[str, pd.DataFrame]]
#: Column of results, its unit, its heading.
QUANTITIES = (("params", "M", "Params"), ("ops", "G", "Ops"))
_MODEL = ("backbone", "timestep", "method", "label", "options", "bits", "seeds")


def paper_rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rule `paper` beside what the paper prints, and beside what its reduction in percent implies.
    `table`: counting.measure_table2."""
    printed = paper_table(2).set_index("bits")
    rows = table[table["rule"] == "paper"].set_index("bits", drop=False)
    theirs = printed.reindex(rows.index)
    columns = {"bits": rows["bits"]}
    for name, unit, heading in QUANTITIES:
        # The paper's rounded reduction stands for a value finer than its rounded integer.
        implied = printed.loc["W32A32", f"{name}_{unit}"] * (1 - theirs[f"{name}_reduction_pct"] / 100)
        columns |= {
            f"{heading}, {unit}": _text(rows[f"{name}_{unit}"], ",.2f"),
            f"{heading} (paper)": _text(theirs[f"{name}_{unit}"], ",.0f"),
            f"{heading} (its reduction)": _text(implied, ",.2f"),
            f"{heading}, residual": _text(rows[f"{name}_residual_{unit}"], "+.2f"),
            f"{heading} reduction, %": _text(rows[f"{name}_reduction_pct"], ".2f"),
            f"{heading} reduction (paper)": _text(theirs[f"{name}_reduction_pct"], ".2f"),
        }
    return pd.DataFrame(columns | _runs(rows)).reset_index(drop=True)


def honest_rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rule `honest`: every method, with its distance to the paper's integers where there are some."""
    honest = table[table["rule"] == "honest"]
    columns = {"method": honest["method"], "bits": honest["bits"]}
    for name, unit, heading in QUANTITIES:
        columns |= {
            f"{heading}, {unit}": _text(honest[f"{name}_{unit}"], ",.2f"),
            f"{heading} reduction, %": _text(honest[f"{name}_reduction_pct"], ".2f"),
            f"{heading} - paper's": _text(honest[f"{name}_residual_{unit}"], "+,.1f"),
        }
    return pd.DataFrame(columns | _runs(honest)).reset_index(drop=True)


def part_shares(parts: pd.DataFrame) -> pd.DataFrame:
    """Weights and operations of every part of every network, with shares of the whole.
    `parts`: counting.measure_parts."""
    names = {
        "layers": "layers",
        "weights_M": "weights, M",
        "params_M": "parameters, M",
        "layer_ops_G": "layer ops, G",
        "attention_ops_G": "attention ops, G",
        "elementwise_ops_G": "elementwise ops, G",
    }
    frames = {}
    for model, rows in parts.groupby("model", sort=False):
        sums = rows.groupby("part", sort=False)[list(names)].sum()
        sums.loc["sum"] = sums.sum()
        for column, share in (("weights_M", "weights, %"), ("layer_ops_G", "layer ops, %")):
            sums.insert(sums.columns.get_loc(column) + 1, share, 100 * sums[column] / sums.loc["sum", column])
        frames[model] = sums.astype({"layers": int})
    digits = dict.fromkeys(names, 3) | {"weights, %": 1, "layer ops, %": 1}
    return pd.concat(frames, names=["model", "part"]).round(digits).rename(columns=names).reset_index()


def component_table(components: pd.DataFrame, column: str) -> pd.DataFrame:
    """`column` ("params_M" or "ops_G") of the honest rule's components, one row per method and bit width."""
    table = components.pivot_table(index=["method", "bits"], columns="component", values=column, sort=False)
    return table.assign(sum=table.sum(axis=1)).round(2).rename_axis(columns=None).reset_index()


def table2_sections(
    table: pd.DataFrame, residual: pd.DataFrame, parts: pd.DataFrame, components: pd.DataFrame
) -> Sections:
    """Everything that figures/<profile>/table2.md holds.
    `table`, `parts`, `components`: counting.measure_table2, measure_parts, measure_components. `residual`:
    counting.full_precision_residual."""
    text = residual.assign(**{column: _text(residual[column], ",.2f") for column in ("params_M", "ops_G")})
    return [
        ("Rule `paper`, and the paper's numbers", paper_rule_table(table)),
        ("Rule `honest`", honest_rule_table(table)),
        ("What the printed full-precision row consists of", text),
        ("Where weights and operations sit", part_shares(parts).astype(str)),
        ("Rule `honest`, storage by component, M", component_table(components, "params_M").astype(str)),
        ("Rule `honest`, operations by component, G", component_table(components, "ops_G").astype(str)),
    ]


def counted_ratios(network: str, models: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Columns method, bits, params_ratio, ops_ratio: by the honest rule of Table 2, of a network in counting.MODELS.
    `models`: (name in METHODS, bits); all combinations of both are counted."""
    from qartsr_lib.study.experiments import counting  # imports the networks, which tables can do without

    methods, bits = (list(dict.fromkeys(model[place] for model in models)) for place in (0, 1))
    rows = counting.honest_rows(counting.components(*counting.counted(network), methods, bits))
    full = rows.iloc[0]
    ratios = {"params_ratio": rows["params_M"] / full["params_M"], "ops_ratio": rows["ops_G"] / full["ops_G"]}
    return rows[["method", "bits"]].assign(**ratios)


def deployment_sections(rows: pd.DataFrame, counted: pd.DataFrame | None = None) -> Sections:
    """Speed and memory; sizes; how far the runtimes agree.
    `rows`: experiments.deployment.COLUMNS. `counted`: of `counted_ratios`, for sizes beside what counting says."""
    timed = rows.dropna(subset=["latency_ms"])
    spread = _text(timed["ratio_lowest"], ".2f") + " to " + _text(timed["ratio_highest"], ".2f")
    speed = {
        "runtime": ("runtime", ""),
        "ms": ("latency_ms", ".0f"),
        "faster than fp32": ("latency_ratio_vs_fp32", ".2f"),
        "spread": ("spread", ""),
        "faster than bf16": ("latency_ratio_vs_bf16", ".2f"),
        "peak, MB": ("peak_MB", ".0f"),
        "PSNR-Y": ("psnr_y", ".2f"),
    }
    packed = rows[rows["method"] != "FP"]
    sizes = packed[packed["runtime"] == "int8"]
    sizes = sizes.assign(time=1 / sizes["latency_ratio_vs_fp32"])
    size = {"file, MB": ("file_MB", ".3f"), "of the float32 file": ("file_ratio", _percent)}
    if counted is not None:
        sizes = sizes.merge(counted, on=["method", "bits"], how="left")
        size |= {"counted parameters": ("params_ratio", _percent), "counted operations": ("ops_ratio", _percent)}
    size["measured time (1 / ratio to fp32)"] = ("time", _percent)
    models = ["backbone", "timestep", "method", "bits"]
    simulated = packed[packed["runtime"] == "simulate"][[*models, "psnr_y"]].drop_duplicates(models)
    apart = packed[packed["runtime"] != "simulate"].merge(simulated, "left", models, suffixes=("", "_simulated"))
    agreement = {
        "against the simulation": ("runtime", ""),
        "mean grey levels": ("mean_grey_diff", ".3f"),
        "largest": ("max_grey_diff", ".0f"),
        "PSNR-Y, difference in dB": ("apart", "+.3f"),
    }
    return [
        ("Speed and memory of one image", _shown(timed.assign(spread=spread), speed)),
        ("Size on disk, and what counting says", _shown(sizes, size)),
        (
            "Agreement: int8 against the simulation, and the simulation's own noise (simulate, float64)",
            _shown(apart.assign(apart=apart["psnr_y"] - apart["psnr_y_simulated"]), agreement),
        ),
    ]


def pass_sections(rows: pd.DataFrame) -> Sections:
    """Milliseconds of an image by pass, largest first, a line for each network. `rows`: experiments.passes."""
    network = ["method", "bits", "runtime"]
    sums = rows.groupby([*network, "pass"], sort=False)["ms"].sum().unstack("pass")
    sums = sums[sums.sum().sort_values(ascending=False).index]
    table = sums.assign(all=sums.sum(axis=1)).map("{:.0f}".format).replace("nan", "").reset_index()
    runs = rows.drop_duplicates(network).reset_index(drop=True)
    table = table.rename_axis(columns=None).assign(**_runs(runs))
    return [("Milliseconds of processor time by pass, one thread", table)]


def computing_times(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows quantity, seconds of the first cell, count, estimated hours, measured hours; none without trained methods.

    The estimate multiplies the first trained cell by the number of models and images of the grid;
    the measurement adds up every cell's own time, whichever run computed it.

    Args:
        records: run records of a table (`Measured.records`), one per cell and data set; those of
            outside systems, which take no time here, are left out.
    """
    cells = []
    for record in records:
        known, spent = record["parameters"], record["duration_s"]
        if known["backbone"] != OUTSIDE:
            seeds, trained = len(known["seeds"]), bool(known["options"].get("images"))
            model = repr([known[key] for key in _MODEL])
            cells.append((model, trained, seeds, spent["build"], record["data"]["images"] * seeds, spent["images"]))
    frame = pd.DataFrame(cells, columns=["model", "trained", "models", "build", "images", "score"])
    trained = frame[frame["trained"].astype(bool)].drop_duplicates("model")
    columns = ["quantity", "seconds, first cell", "count", "hours, estimated", "hours, measured"]
    if trained.empty:
        return pd.DataFrame(columns=columns)
    rows = []
    for quantity, of, count, spent in (
        ("training a model", trained, "models", "build"),
        ("upscaling and scoring an image", frame, "images", "score"),
    ):
        one, total = trained[spent].iloc[0] / trained[count].iloc[0], of[count].sum()
        rows.append((quantity, one, total, one * total / 3600, of[spent].sum() / 3600))
    rows.append(("together", None, None, sum(row[3] for row in rows), sum(row[4] for row in rows)))
    return pd.DataFrame(rows, columns=columns).round(2)


Format = str | Callable[[float], str]


def _text(values: pd.Series, form: Format) -> pd.Series:
    """Values as text, "" for unavailable ones."""
    show = form if callable(form) else lambda value: format(value, form)
    return values.map(lambda value: "" if pd.isna(value) else show(value))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shown(rows: pd.DataFrame, columns: Mapping[str, tuple[str, Format]]) -> pd.DataFrame:
    """Method, bits, and each heading's column of `rows` as text."""
    texts = {heading: _text(rows[name], form) for heading, (name, form) in columns.items()}
    return pd.DataFrame({"method": rows["method"], "bits": rows["bits"], **texts} | _runs(rows))


def _runs(rows: pd.DataFrame) -> dict[str, pd.Series]:
    return {RUN: rows["run_id"]} if "run_id" in rows else {}
