"""Which rows may stand beside each other: what a part of a table (KEEP) must have in common with the rows it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.setting import DEFAULT
from qartsr_lib.study.paper import OUTSIDE
from qartsr_lib.study.results import COLUMNS, KEYS, among, as_text, keys_of, read_cells, read_per_image

_SETTING = vars(DEFAULT)  # what options leave out
_SHARED = ("batch", "teacher", "image_loss", "images", *_SETTING)
#: What a table compares, by the end of its name; in others, and all else, its rows are alike.
_COMPARED = {"_loss": ("image_loss",), "_budget": ("images",), "_settings": ("images", *_SETTING)}


def check_part(
    profile: str, table: str, frame: pd.DataFrame, per_image: pd.DataFrame, records: Sequence[dict] = ()
) -> None:
    """Refuse a part of a table that others' rows cannot stand beside, see `Measured.write`.

    A QartsrError where rows that it replaces have metrics or seeds that it lacks, or rows that it leaves are over other
    images, or over the same, cropped to another side, or were calibrated or trained under other conditions.
    """
    path = paths.results_dir(profile) / f"{table}.csv"
    if not path.is_file():
        return
    new, old = as_text(frame), read_cells(path, COLUMNS)
    replaced = keys_of(new, KEYS)
    gone = among(old, KEYS, replaced)
    if lost := sorted(set(old.loc[gone, "metric"]) - set(new["metric"])):
        raise QartsrError(f"{path}: has {', '.join(lost)} of rows that this part makes anew; give it these, too")
    most = max((len(record["parameters"]["seeds"]) for record in records if "seeds" in record["parameters"]), default=0)
    had = old.loc[gone, "n_seeds"].astype(int).max()
    if 0 < most < had:
        raise QartsrError(f"{path}: has {had} seeds of rows that this part makes anew with {most}; give it these, too")
    _check_crops(path, old[~gone], records)
    _check_conditions(path, old[~gone], records)
    if not any((path.parent / "per_image" / table).glob("*.csv")):
        return
    others = read_per_image(profile, table)
    others = others[~among(others, KEYS, replaced)]
    for dataset in new["dataset"].unique():
        there = set(others.loc[others["dataset"] == dataset, "image"].astype(str))
        here = set(per_image.loc[per_image["dataset"] == dataset, "image"].astype(str))
        if there and here and there != here:
            raise QartsrError(
                f"{path}: its other rows of {dataset} are over {len(there)} images, this part's over {len(here)} "
                f"({len(there & here)} of them the same); give it the same, by finetune_images"
            )


def _check_crops(path: Path, others: pd.DataFrame, records: Sequence[dict]) -> None:
    """See `check_part`; records of outside systems do not tell to which side their images were cropped."""
    crops = {}
    for record in records:
        data, own = record.get("data"), record["parameters"].get("backbone") != OUTSIDE
        crops |= {data["name"]: (data["sha256"], record.get("max_side"))} if data and own else {}
    kept = others.loc[(others["backbone"] != OUTSIDE) & others["dataset"].isin(crops), ["dataset", "run_id"]]
    for dataset, run_id in kept.drop_duplicates().itertuples(index=False, name=None):
        with suppress(KeyError):  # absent, or damaged
            record = _record(path, run_id)
            (data, side), theirs = crops[dataset], record.get("max_side")
            if record["data"]["sha256"] != data and theirs != side:
                raise QartsrError(
                    f"{path}: its other rows of {dataset} are over images cropped to {theirs} pixels a side, this "
                    f"part's to {side} (None: whole); give it the same, by finetune_side"
                )


def _check_conditions(path: Path, others: pd.DataFrame, records: Sequence[dict]) -> None:
    """See `check_part`."""
    kept = [record for run_id in others["run_id"].unique() if (record := _record(path, run_id))]
    theirs, ours = (_conditions(found, path.stem) for found in (kept, records))
    for name in theirs.keys() & ours.keys():
        if not ours[name] <= theirs[name]:
            told = [" and ".join(sorted(map(str, values))) for values in (theirs[name], ours[name])]
            raise QartsrError(f"{path}: its other rows have {name} {told[0]}, this part's {told[1]}; give it the same")


def _conditions(records: Iterable[dict], table: str) -> dict[str, set]:
    """Calibration images (a hash), the setting and what trained methods share -> the values in `records`."""
    found: dict[str, set] = {}
    compared = next((names for end, names in _COMPARED.items() if table.endswith(end)), ())
    for record in filter(lambda record: record.get("calibration"), records):  # of quantized models
        options = _SETTING | (record["parameters"].get("options") or {})
        told = {name: options[name] for name in _SHARED if name in options and name not in compared}
        told["calibration images"] = record["calibration"]["sha256"][:8]
        for name, value in told.items():
            found.setdefault(name, set()).add(value)
    return found


def _record(path: Path, run_id: str) -> dict:
    """The run record of a row of the table at `path`; empty where it is absent or damaged."""
    with suppress(FileNotFoundError, ValueError):
        record = json.loads((path.parent / "runs" / f"{run_id}.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}
