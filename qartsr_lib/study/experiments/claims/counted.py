"""Checks "cell" and "share": counted, fitted or timed numbers against bounds, without a test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from qartsr_lib.study.experiments.claims.base import CHECKS, Finding, NoData, margin, measured_file
from qartsr_lib.study.results import read_measurement


@CHECKS.register("cell")
def cell(settings: Mapping[str, Any], profile: str) -> Finding:
    """One number of a table against a number of the paper or a bound.

    Settings: table, column; where: column -> value, which must leave one row; above and below (limits,
    included) or paper and within (|ours - paper| <= within); low, high: columns of an interval, if any.
    With `profile` the table is that profile's.
    """
    profile = settings.get("profile", profile)
    path = measured_file(profile, f"{settings['table']}.csv")
    where = dict(settings["where"])
    for key in ("bits", "method", "dataset", "backbone"):
        where |= {key: settings[key]} if key in settings else {}
    rows = read_measurement(profile, settings["table"], (*where, settings["column"]))
    for column, value in where.items():
        rows = rows[rows[column] == value]
    named = ", ".join(str(value) for value in where.values())
    if len(rows) != 1:
        raise NoData(f"results/{profile}/{path.name} has {len(rows)} rows of {named}, not one")
    row = rows.iloc[0]
    value, (above, below) = float(row[settings["column"]]), _bounds(settings)
    low, high = (float(row[settings[end]]) if end in settings else math.nan for end in ("low", "high"))
    return Finding(
        what=f"{settings['column']}, {named}",
        test="counted or measured number, no test",
        n=1,
        effect=value,
        low=low,
        high=high,
        margin=margin(value, above, below),
        favours=above <= value <= below,
        run_ids=tuple(str(row[key]) for key in ("run_id", "run_ids") if key in row),
    )


@CHECKS.register("share")
def share(settings: Mapping[str, Any], profile: str) -> Finding:
    """Quotient of two numbers of a JSON file of the results (`part` / `whole`), at most `below`."""
    profile = settings.get("profile", profile)
    path = measured_file(profile, settings["file"])
    found = json.loads(path.read_text(encoding="utf-8"))
    part, whole = settings["part"], settings["whole"]
    value, (above, below) = found[part] / found[whole], _bounds(settings)
    return Finding(
        what=f"{part} / {whole}, results/{profile}/{path.name}",
        test="counted or measured number, no test",
        n=1,
        effect=value,
        margin=margin(value, above, below),
        favours=above <= value <= below,
    )


def _bounds(settings: Mapping[str, Any]) -> tuple[float, float]:
    if "paper" in settings:
        return settings["paper"] - settings["within"], settings["paper"] + settings["within"]
    return settings.get("above", -math.inf), settings.get("below", math.inf)
