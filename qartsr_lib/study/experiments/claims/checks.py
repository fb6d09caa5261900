"""The checks that rules.toml names: paired contrasts with a test, and counted or timed numbers against bounds."""

from __future__ import annotations

import json
import math
import statistics
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
from qartsr_lib.study.experiments.claims.ledger import CHECKS, Finding, NoData
from qartsr_lib.study.paper import paper_table
from qartsr_lib.study.results import KEYS
from qartsr_lib.study.stats import mean_interval

Settings = Mapping[str, Any]


@CHECKS.register("contrast")
def contrast(settings: Settings, profile: str) -> Finding:
    """Values of `plus` minus those of `minus`, per image, against the bounds `above` and `below`.

    Settings: table, metric, and of KEYS what all cells share; plus and minus: lists of what sets each cell
    apart ("@name" stands for the setting of that name); above, below: where the claim says that the effect lies (at
    least one), for every seed too. Where less is better, the sign is turned: above 0, `plus` is better.

    The p-value is of a one-sided Wilcoxon signed-rank test against the bound (with two bounds the larger of both:
    equivalence by two one-sided tests); the interval is a BCa bootstrap's of the mean. A photograph of which `minus`
    has a picture and `plus`, which diverged, none (with two bounds either) speaks against the claim.
    """
    metric, values = settings["metric"], _per_image(profile, settings["table"])
    shared = {key: settings[key] for key in KEYS if key in settings}
    sides = [
        [{key: settings[v[1:]] if str(v).startswith("@") else v for key, v in cell.items()} for cell in settings[side]]
        for side in ("plus", "minus")
    ]
    plus, minus = ([_cell(values, shared | cell, metric) for cell in side] for side in sides)
    sign = -1 if lower_is_better(metric) else 1
    by_image = sign * paired(_means(plus), _means(minus))
    above, below = settings.get("above", -math.inf), settings.get("below", math.inf)
    failed = _failed(plus, minus) + (_failed(minus, plus) if math.isfinite(above) and math.isfinite(below) else 0)
    if by_image.empty and not failed:
        raise NoData(f"{metric} has no value for {_named(shared)}")
    effect, low, high = (math.nan,) * 3 if by_image.empty else mean_interval(by_image)
    every = pd.concat([*plus, *minus])
    per_seed = [sign * float(paired(_means(plus, seed), _means(minus, seed)).mean()) for seed in every["seed"].unique()]
    agree = sum(above < value < below for value in per_seed)
    seeds = f", {agree} of {len(per_seed)} seeds agree" if len(per_seed) > 1 else ""
    lacking = f", {failed} photographs have no value on one side" if failed else ""
    return Finding(
        check=f"{metric}, {_named(shared, ', ')}: {' minus '.join(' + '.join(map(_named, side)) for side in sides)}",
        test=f"Wilcoxon signed-rank, paired over images{seeds}{lacking}",
        n=len(by_image) + failed,
        effect=effect,
        ci_low=low,
        ci_high=high,
        p=1.0 if failed else _p(by_image.to_numpy(), above, below),
        favours=not failed and above < low and high < below and agree == len(per_seed),
        run_ids=" ".join(every["run_id"].unique()),
    )


def _per_image(profile: str, table: str) -> pd.DataFrame:
    """Per-image values of a table, or of a measurement that has a column "image", in long format."""
    files = sorted((paths.results_dir(profile) / "per_image" / table).glob("*.csv"))
    files = files or [_file(profile, f"{table}.csv")]
    return _read(profile, table, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _read(profile: str, table: str, files: tuple[tuple[Path, int], ...]) -> pd.DataFrame:
    if files[0][0].parent.name == table:
        return results.read_per_image(profile, table, absent=True)  # seeds that diverged agree with nothing
    wide = results.read_measurement(profile, table, ("image", "run_id"))
    fixed = [column for column in (*KEYS, "variant", "image", "run_id") if column in wide]
    return wide.melt(id_vars=fixed, var_name="metric", value_name="value").assign(seed=0)


def _file(profile: str, name: str) -> Path:
    """results/<profile>/<name>, which may lie deeper."""
    path = paths.results_dir(profile) / name
    if not path.is_file():
        raise NoData(f"results/{profile}/{name} is not there yet")
    return path


def _cell(values: pd.DataFrame, wanted: Settings, metric: str) -> pd.DataFrame:
    rows = _rows(values, wanted | {"metric": metric})
    if rows.empty:
        raise NoData(f"no row of {_named(wanted)}")
    return rows


def _rows(frame: pd.DataFrame, wanted: Settings) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def _means(cells: Sequence[pd.DataFrame], seed: int | None = None) -> list[pd.Series]:
    """Values per image: means over seeds, or of one seed where a cell has it."""
    return [image_means(rows[rows["seed"] == seed] if (rows["seed"] == seed).any() else rows) for rows in cells]


def _failed(cells: Sequence[pd.DataFrame], others: Sequence[pd.DataFrame]) -> int:
    """Photographs of which `others` have a value and `cells` none."""
    theirs = sum(_means(others)).dropna()
    return int(sum(_means(cells)).reindex(theirs.index).isna().sum())


def _p(effects: np.ndarray, above: float, below: float) -> float:
    sides = [(effects - bound, side) for bound, side in ((above, "greater"), (below, "less")) if math.isfinite(bound)]
    return max(float(scipy.stats.wilcoxon(d, alternative=side).pvalue) if d.any() else 1.0 for d, side in sides)


def _named(cell: Settings, between: str = " ") -> str:
    return between.join(f"T = {value}" if key == "timestep" else str(value) for key, value in cell.items())


@CHECKS.register("cell")
def cell(settings: Settings, profile: str) -> Finding:
    """One number of a table against a bound, or against the number of the same column and bits in the paper's Table 2.

    Settings: table, column; where: column -> value, which must leave one row; above and below (limits, included) or
    within (|ours - the paper's| <= within); low, high: columns of an interval; profile: whose table, if another's.
    """
    profile, table, column = settings.get("profile", profile), settings["table"], settings["column"]
    where = settings["where"] | {k: settings[k] for k in ("bits", "method", "dataset", "backbone") if k in settings}
    _file(profile, f"{table}.csv")
    rows = _rows(results.read_measurement(profile, table, (*where, column)), where)
    named = ", ".join(map(str, where.values()))
    if len(rows) != 1:
        raise NoData(f"results/{profile}/{table}.csv has {len(rows)} rows of {named}, not one")
    row = rows.iloc[0]
    if pd.isna(row[column]):
        raise NoData(f"results/{profile}/{table}.csv has no {column} of {named}")
    more = {f"ci_{end}": float(row[settings[end]]) for end in ("low", "high") if end in settings}
    more["run_ids"] = " ".join(str(row[key]) for key in ("run_id", "run_ids") if key in row)
    if "within" in settings:
        printed = float(paper_table(2).set_index("bits").at[where["bits"], column])
        settings = {"above": printed - settings["within"], "below": printed + settings["within"]}
    return _number(f"{column}, {named}", float(row[column]), settings, **more)


@CHECKS.register("share")
def share(settings: Settings, profile: str) -> Finding:
    """Quotient of two numbers of a JSON file of the results (`part` / `whole`), at most `below`."""
    profile, part, whole = settings.get("profile", profile), settings["part"], settings["whole"]
    path = _file(profile, settings["file"])
    found = json.loads(path.read_text(encoding="utf-8"))
    return _number(f"{part} / {whole}, results/{profile}/{path.name}", found[part] / found[whole], settings)


def _number(check: str, value: float, settings: Settings, **more: object) -> Finding:
    above, below = settings.get("above", -math.inf), settings.get("below", math.inf)
    more = {"test": "counted or measured number, no test", "n": 1} | more
    favours = above <= value <= below
    return Finding(check=check, effect=value, margin=margin(value, above, below), favours=favours, **more)


@CHECKS.register("duration")
def duration(settings: Settings, profile: str) -> Finding:
    """Median over models of seconds(method) / seconds(against), equal backbone, T and bits; at most `below`.

    Settings: table, method, against (names in the table). Times are those of the run records, per seed; a model
    counts once, however many data sets it upscaled.
    """
    (ours, others), models = (settings["method"], settings["against"]), ["backbone", "timestep", "bits"]
    _file(profile, f"{settings['table']}.csv")
    table = results.read_table(profile, settings["table"]).drop_duplicates(["method", *models])
    pairs = _rows(table, {"method": ours}).merge(_rows(table, {"method": others}), on=models)
    if pairs.empty:
        raise NoData(f"{settings['table']}: no model of {ours} beside one of {others}")
    runs = pairs[["run_id_x", "run_id_y"]]
    ratios = [_seconds(profile, first) / _seconds(profile, second) for first, second in runs.to_numpy()]
    return _number(
        f"time to quantize, {ours} / {others}",
        statistics.median(ratios),
        {"below": settings["below"]},
        test="measured number, no test",
        n=len(ratios),
        ci_low=min(ratios),
        ci_high=max(ratios),
        run_ids=" ".join(pd.unique(runs.to_numpy().ravel())),
    )


def _seconds(profile: str, run_id: str) -> float:
    record = json.loads(_file(profile, f"runs/{run_id}.json").read_text(encoding="utf-8"))
    return record["duration_s"]["build"] / len(record["parameters"]["seeds"])


def margin(value: float, above: float = -math.inf, below: float = math.inf) -> float:
    """Distance of `value` from its nearer bound, as a share of that bound (of 1 where it is 0); negative outside."""
    distances = [(value - above, above), (below - value, below)]
    return min(distance / (abs(bound) or 1.0) for distance, bound in distances if math.isfinite(bound))
