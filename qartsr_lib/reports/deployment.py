"""Rendered table of notebook 07."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib import counting
from qartsr_lib.deploy.measurement import EXACT

Sections = list[tuple[str, pd.DataFrame]]


def deployment_sections(rows: pd.DataFrame, counted: pd.DataFrame) -> Sections:
    """Sizes and latencies; the agreement of the runtimes.

    Args:
        rows: deploy.measurement.COLUMNS.
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


def counted_ratios(network: str, methods: Sequence[str], bits: Sequence[str]) -> pd.DataFrame:
    """Columns method, bits, params_ratio, ops_ratio: by the honest rule of Table 2, of a network in counting.MODELS."""
    rows = counting.honest_rows(counting.components(*counting.counted(network), methods, bits))
    full = rows.iloc[0]
    ratios = {"params_ratio": rows["params_M"] / full["params_M"], "ops_ratio": rows["ops_G"] / full["ops_G"]}
    return rows[["method", "bits"]].assign(**ratios)


def _speed(rows: pd.DataFrame) -> pd.DataFrame:
    spread = [f"{row.ratio_lowest:.2f} to {row.ratio_highest:.2f}" for row in rows.itertuples()]
    return pd.DataFrame(
        {
            "method": rows["method"],
            "bits": rows["bits"],
            "runtime": rows["runtime"],
            "ms": rows["latency_ms"].map("{:.0f}".format),
            "faster than fp32": rows["latency_ratio_vs_fp32"].map("{:.2f}".format),
            "spread": spread,
            "faster than bf16": rows["latency_ratio_vs_bf16"].map("{:.2f}".format),
            "peak, MB": rows["peak_MB"].map(lambda value: "" if pd.isna(value) else f"{value:.0f}"),
            "PSNR-Y": rows["psnr_y"].map("{:.2f}".format),
        }
    )


def _sizes(rows: pd.DataFrame) -> pd.DataFrame:
    percent = "{:.1f} %".format
    return pd.DataFrame(
        {
            "method": rows["method"],
            "bits": rows["bits"],
            "file, MB": rows["file_MB"].map("{:.3f}".format),
            "of the float32 file": (100 * rows["file_ratio"]).map(percent),
            "counted parameters": (100 * rows["params_ratio"]).map(percent),
            "counted operations": (100 * rows["ops_ratio"]).map(percent),
            "measured time (1 / ratio to fp32)": (100 / rows["latency_ratio_vs_fp32"]).map(percent),
        }
    )


def _agreement(rows: pd.DataFrame) -> pd.DataFrame:
    shown = rows[rows["runtime"] != "simulate"]
    simulated = rows[rows["runtime"] == "simulate"].set_index(["method", "bits"])["psnr_y"]
    before = [simulated[key] for key in zip(shown["method"], shown["bits"], strict=True)]
    return pd.DataFrame(
        {
            "method": shown["method"],
            "bits": shown["bits"],
            "against the simulation": shown["runtime"],
            "mean grey levels": shown["mean_grey_diff"].map("{:.3f}".format),
            "largest": shown["max_grey_diff"].map("{:.0f}".format),
            "PSNR-Y, difference in dB": (shown["psnr_y"] - before).map("{:+.3f}".format),
        }
    )
