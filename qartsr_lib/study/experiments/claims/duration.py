"""Check "duration": how long a method's models took to make, against another method's."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from qartsr_lib.study.experiments.claims.base import CHECKS, Finding, NoData, margin, measured_file
from qartsr_lib.study.results import read_table


@CHECKS.register("duration")
def duration(settings: Mapping[str, Any], profile: str) -> Finding:
    """Median over models of seconds(method) / seconds(against), equal backbone, T and bits; at most `below`.

    Settings: table, method, against (names in the table). Times are those of the run records, per seed. A model
    counts once, however many data sets it upscaled.
    """
    measured_file(profile, f"{settings['table']}.csv")
    table = read_table(profile, settings["table"])
    keys = ["backbone", "timestep", "bits"]
    ours, others = (
        table[table["method"] == settings[side]].drop_duplicates(keys).set_index(keys)["run_id"]
        for side in ("method", "against")
    )
    pairs = [(ours[key], others[key]) for key in ours.index.intersection(others.index)]
    if not pairs:
        raise NoData(f"{settings['table']}: no model of {settings['method']} beside one of {settings['against']}")
    ratios = [_seconds(profile, first) / _seconds(profile, second) for first, second in pairs]
    median = statistics.median(ratios)
    return Finding(
        what=f"time to quantize, {settings['method']} / {settings['against']}",
        test="measured number, no test",
        n=len(ratios),
        effect=median,
        low=min(ratios),
        high=max(ratios),
        margin=margin(median, below=settings["below"]),
        favours=median <= settings["below"],
        run_ids=tuple(dict.fromkeys(run for pair in pairs for run in pair)),
    )


def _seconds(profile: str, run_id: str) -> float:
    record = json.loads(measured_file(profile, f"runs/{run_id}.json").read_text(encoding="utf-8"))
    return record["duration_s"]["build"] / len(record["parameters"]["seeds"])
