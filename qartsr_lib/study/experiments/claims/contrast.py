"""Check "contrast": sums of cells, paired over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from qartsr_lib.base import paths
from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.study import results
from qartsr_lib.study.contrasts import image_means, paired
from qartsr_lib.study.experiments.claims.base import CHECKS, Finding, NoData, measured_file
from qartsr_lib.study.results import KEYS
from qartsr_lib.study.stats import mean_interval


@CHECKS.register("contrast")
def contrast(settings: Mapping[str, Any], profile: str) -> Finding:
    """Values of `plus` minus those of `minus`, per image, against the bounds `above` and `below`.

    Settings: table, metric, and of KEYS what all cells share; plus and minus: lists of what sets each
    cell apart ("@name" stands for the setting of that name); above, below: where the claim says that the
    effect lies (at least one). Where less is better, the sign is turned: above 0, `plus` is better.

    The p-value is of a one-sided Wilcoxon signed-rank test against the bound (with two bounds the
    larger of both: equivalence by two one-sided tests); the interval is a BCa bootstrap's of the mean.
    The effect must lie within the bounds for every seed too.
    """
    values = _long(profile, settings["table"])
    values = values[values["metric"] == settings["metric"]]
    settings = settings | {side: [_resolved(cell, settings) for cell in settings[side]] for side in ("plus", "minus")}
    shared = {key: settings[key] for key in KEYS if key in settings}
    plus, minus = ([_cell(values, shared | cell) for cell in settings[side]] for side in ("plus", "minus"))
    sign = -1 if lower_is_better(settings["metric"]) else 1
    by_image = sign * paired(_means(plus), _means(minus))
    if by_image.empty:
        raise NoData(f"{settings['metric']} has no value for {_named(shared)}")
    effect, low, high = mean_interval(by_image)
    above, below = settings.get("above", -math.inf), settings.get("below", math.inf)
    seeds = sorted({int(seed) for rows in [*plus, *minus] for seed in rows["seed"]})
    per_seed = [sign * float(paired(_means(plus, seed), _means(minus, seed)).mean()) for seed in seeds]
    agree = sum(above < value < below for value in per_seed)
    told = f", {agree} of {len(per_seed)} seeds agree" if len(per_seed) > 1 else ""
    return Finding(
        what=_title(settings),
        test=f"Wilcoxon signed-rank, paired over images{told}",
        n=len(by_image),
        effect=effect,
        low=low,
        high=high,
        p=_p(by_image.to_numpy(), above, below),
        favours=above < low and high < below and agree == len(per_seed),
        run_ids=tuple(dict.fromkeys(run for rows in [*plus, *minus] for run in rows["run_id"])),
    )


def _long(profile: str, table: str) -> pd.DataFrame:
    """Per-image values of a table, or of a measurement that has a column "image"."""
    files = sorted((paths.results_dir(profile) / "per_image" / table).glob("*.csv"))
    files = files or [measured_file(profile, f"{table}.csv")]
    return _read(profile, table, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _read(profile: str, table: str, files: tuple[tuple[Path, int], ...]) -> pd.DataFrame:
    first = files[0][0]
    if first.parent.name == table:
        return results.read_per_image(profile, table)
    wide = results.read_measurement(profile, table, ("image", "run_id"))
    fixed = [column for column in (*KEYS, "variant", "image", "run_id") if column in wide]
    return wide.melt(id_vars=fixed, var_name="metric", value_name="value").assign(seed=0)


def _resolved(cell: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: settings[value[1:]] if isinstance(value, str) and value.startswith("@") else value
        for key, value in cell.items()
    }


def _cell(values: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    for column, value in wanted.items():
        values = values[values[column] == value]
    if values.empty:
        raise NoData(f"no row of {_named(wanted)}")
    return values


def _means(cells: Sequence[pd.DataFrame], seed: int | None = None) -> list[pd.Series]:
    """Values per image: means over seeds, or of one seed where a cell has it."""
    return [image_means(rows[rows["seed"] == seed] if (rows["seed"] == seed).any() else rows) for rows in cells]


def _p(effects: np.ndarray, above: float, below: float) -> float:
    tests = [(above, "greater"), (below, "less")]
    sides = [_wilcoxon(effects - bound, side) for bound, side in tests if math.isfinite(bound)]
    return max(sides)


def _wilcoxon(shifted: np.ndarray, side: str) -> float:
    return 1.0 if not shifted.any() else float(scipy.stats.wilcoxon(shifted, alternative=side).pvalue)


def _title(settings: Mapping[str, Any]) -> str:
    shared = [str(settings[key]) for key in ("dataset", "backbone") if key in settings]
    for key, text in (("timestep", "T = {}"), ("method", "{}"), ("bits", "{}")):
        if key in settings:
            shared.append(text.format(settings[key]))
    sides = [" + ".join(_named(cell) for cell in settings[side]) for side in ("plus", "minus")]
    return f"{settings['metric']}, {', '.join(shared)}: {sides[0]} minus {sides[1]}"


def _named(cell: Mapping[str, Any]) -> str:
    return " ".join(f"T = {value}" if key == "timestep" else str(value) for key, value in cell.items())
