"""Rendered table of notebook 07."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from qartsr_lib.study.experiments import counting
from qartsr_lib.study.experiments.deployment import EXACT

Sections = list[tuple[str, pd.DataFrame]]


def deployment_sections(rows: pd.DataFrame, counted: pd.DataFrame) -> Sections:
    """Sizes and latencies; the agreement of the runtimes.

    Args:
        rows: deployment.COLUMNS.
        counted: of `counted_ratios`.
    """
    timed = rows.dropna(subset=["latency_ms"])
    packed = rows[rows["method"] != "FP"]
    sizes = packed[packed["runtime"] == "int8"].merge(counted, on=["method", "bits"], how="left")
    return [
        ("Speed and memory of one image", _speed(timed)),
        ("Size on disk, and what counting says", _sizes(sizes)),
        (f"Agreement: int8 against the simulation, and the simulation's own noise ({EXACT})", _agreement(packed)),
    ]


def counted_ratios(network: str, models: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Columns method, bits, params_ratio, ops_ratio: by the honest rule of Table 2, of a network in counting.

    Args:
        models: (name in METHODS, bits); all combinations of both are counted.
    """
    methods, bits = (list(dict.fromkeys(values)) for values in zip(*models, strict=True))
    rows = counting.honest_rows(counting.components(*counting.counted(network), methods, bits))
    full = rows.iloc[0]
    ratios = {"params_ratio": rows["params_M"] / full["params_M"], "ops_ratio": rows["ops_G"] / full["ops_G"]}
    return rows[["method", "bits"]].assign(**ratios)


def _speed(rows: pd.DataFrame) -> pd.DataFrame:
    spread = [f"{row.ratio_lowest:.2f} to {row.ratio_highest:.2f}" for row in rows.itertuples()]
    return _shown(
        rows.assign(spread=spread),
        {
            "runtime": ("runtime", str),
            "ms": ("latency_ms", "{:.0f}".format),
            "faster than fp32": ("latency_ratio_vs_fp32", "{:.2f}".format),
            "spread": ("spread", str),
            "faster than bf16": ("latency_ratio_vs_bf16", "{:.2f}".format),
            "peak, MB": ("peak_MB", lambda value: "" if pd.isna(value) else f"{value:.0f}"),
            "PSNR-Y": ("psnr_y", "{:.2f}".format),
        },
    )


def _sizes(rows: pd.DataFrame) -> pd.DataFrame:
    return _shown(
        rows.assign(time=1 / rows["latency_ratio_vs_fp32"]),
        {
            "file, MB": ("file_MB", "{:.3f}".format),
            "of the float32 file": ("file_ratio", _percent),
            "counted parameters": ("params_ratio", _percent),
            "counted operations": ("ops_ratio", _percent),
            "measured time (1 / ratio to fp32)": ("time", _percent),
        },
    )


def _agreement(rows: pd.DataFrame) -> pd.DataFrame:
    shown = rows[rows["runtime"] != "simulate"]
    simulated = rows[rows["runtime"] == "simulate"].set_index(["method", "bits"])["psnr_y"]
    before = [simulated[key] for key in zip(shown["method"], shown["bits"], strict=True)]
    return _shown(
        shown.assign(apart=shown["psnr_y"] - before),
        {
            "against the simulation": ("runtime", str),
            "mean grey levels": ("mean_grey_diff", "{:.3f}".format),
            "largest": ("max_grey_diff", "{:.0f}".format),
            "PSNR-Y, difference in dB": ("apart", "{:+.3f}".format),
        },
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shown(rows: pd.DataFrame, columns: Mapping[str, tuple[str, Callable[..., str]]]) -> pd.DataFrame:
    """Method, bits, and each heading's column of `rows` as text."""
    texts = {heading: rows[name].map(text) for heading, (name, text) in columns.items()}
    return pd.DataFrame({"method": rows["method"], "bits": rows["bits"], **texts})
