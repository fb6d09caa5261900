"""How long a table takes: the estimate that one cell gives for the whole grid, and the time that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

_MODEL = ("backbone", "timestep", "method", "label", "options", "bits", "seeds")


def computing_times(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows quantity, seconds of one cell, count, estimated hours, measured hours.

    The estimate multiplies the first trained cell by the number of models and images of the grid;
    the measurement adds up every cell's own time, whichever run computed it.

    Args:
        records: run records of a table (`Measured.records`), one per cell and data set; those of
            outside systems, which take no time here, are left out.

    Returns:
        Three rows; none for a table without a trained method.
    """
    records = [record for record in records if "options" in record["parameters"]]
    models: dict[str, Mapping[str, Any]] = {}
    for record in records:
        models.setdefault(repr([record["parameters"][key] for key in _MODEL]), record)
    columns = ["quantity", "seconds, first cell", "count", "hours, estimated", "hours, measured"]
    trained = [record for record in models.values() if record["parameters"]["options"].get("images")]
    if not trained:
        return pd.DataFrame(columns=columns)
    first = trained[0]
    one_model = first["duration_s"]["build"] / len(first["parameters"]["seeds"])
    one_image = first["duration_s"]["images"] / _images(first)
    seconds = [
        ("training a model", one_model, sum(len(r["parameters"]["seeds"]) for r in trained), _sum(trained, "build")),
        ("upscaling and scoring an image", one_image, sum(map(_images, records)), _sum(records, "images")),
    ]
    rows = [(name, one, count, one * count / 3600, measured / 3600) for name, one, count, measured in seconds]
    rows.append(("together", None, None, sum(row[3] for row in rows), sum(row[4] for row in rows)))
    return pd.DataFrame(rows, columns=columns).round(2)


def _images(record: Mapping[str, Any]) -> int:
    return record["data"]["images"] * len(record["parameters"]["seeds"])


def _sum(records: Sequence[Mapping[str, Any]], part: str) -> float:
    return sum(record["duration_s"][part] for record in records)
