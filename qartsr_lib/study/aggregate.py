"""From per-image values to table rows and run records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.images.datasets.base import Pair, fingerprint
from qartsr_lib.study import result_cells
from qartsr_lib.study.evaluator import EVALUATION, NO_CALIBRATION, Evaluator, ScoredImage
from qartsr_lib.study.experiment import Experiment
from qartsr_lib.study.stats import bootstrap_interval, is_small

FEW_NOTE = "interval over fewer than ten photographs"


def aggregate(
    values: Sequence[tuple[Experiment, Pair, ScoredImage]],
    evaluator: Evaluator,
    pairs: dict[str, list[Pair]],
    profile: str,
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict]]:
    """(table, per-image values, run records).

    A cell's value is the mean over images of the mean over seeds; its interval is a bootstrap over
    images (seeds are repetitions of the method, not further photographs).
    """
    prints = {dataset: fingerprint(dataset_pairs) for dataset, dataset_pairs in pairs.items()}
    cells: dict[Experiment, list[tuple[Experiment, Pair, ScoredImage]]] = {}
    for experiment, pair, measured in values:
        cells.setdefault(replace(experiment, seed=0), []).append((experiment, pair, measured))
    rows, images, records = [], [], []
    for cell, members in cells.items():
        experiments = list(dict.fromkeys(experiment for experiment, _, _ in members))
        record = _record(experiments, members, evaluator, prints[cell.dataset], profile)
        long = _per_image(members, evaluator, record["run_id"])
        record["outputs_sha256"] = stable_hash([result_cells.cell_text(value) for value in long["value"]])
        rows += _rows(long, experiments, evaluator)
        images.append(long)
        records.append(record)
    return pd.DataFrame(rows, columns=list(result_cells.COLUMNS)), pd.concat(images, ignore_index=True), records


def _per_image(
    members: Sequence[tuple[Experiment, Pair, ScoredImage]], evaluator: Evaluator, run_id: str
) -> pd.DataFrame:
    rows = [
        (
            experiment.dataset,
            experiment.backbone,
            experiment.timestep,
            _label(experiment, evaluator),
            experiment.bits,
            experiment.seed,
            pair.id,
            metric,
            value,
            run_id,
            note,
        )
        for experiment, pair, measured in members
        for metric, (value, note) in measured.scores.items()
    ]
    return pd.DataFrame(rows, columns=[*result_cells.PER_IMAGE_COLUMNS, "note"]).astype({"value": float})


def _rows(long: pd.DataFrame, experiments: Sequence[Experiment], evaluator: Evaluator) -> list[dict[str, Any]]:
    infos = [evaluator.model_info(experiment) for experiment in experiments]
    stored = [info["w_bits_effective"] for info in infos if info["w_bits_effective"] is not None]
    rows = []
    for metric, scored in long.groupby("metric", sort=False):
        by_image = scored.groupby("image", sort=True)["value"].mean().dropna().to_numpy()
        low, high = bootstrap_interval(by_image) if len(by_image) else (np.nan, np.nan)
        notes = list(dict.fromkeys(note for note in [*scored["note"], *(info["note"] for info in infos)] if note))
        if len(by_image) and is_small(len(by_image)):
            notes.append(FEW_NOTE)
        first = scored.iloc[0]
        rows.append(
            {
                **{column: first[column] for column in ("dataset", "backbone", "timestep", "method", "bits", "run_id")},
                "metric": metric,
                "value": by_image.mean() if len(by_image) else np.nan,
                "ci_low": low,
                "ci_high": high,
                "n_images": len(by_image),
                "n_seeds": len(experiments),
                "steps": max(info["steps"] for info in infos),
                "w_bits_effective": float(np.mean(stored)) if stored else np.nan,
                "note": "; ".join(notes),
            }
        )
    return rows


def _record(
    experiments: Sequence[Experiment],
    members: Sequence[tuple[Experiment, Pair, ScoredImage]],
    evaluator: Evaluator,
    data_sha256: str,
    profile: str,
) -> dict[str, Any]:
    """The run record of one cell. Its run_id names what was asked for: experiment, weights, data, metrics.

    The environment (versions, device, threads) is recorded beside it: it may move digits, and it is
    part of the cache's keys, but the same question has the same name on every machine.
    """
    first = experiments[0]
    calibration = {"name": evaluator.calibration.name, "sha256": evaluator.calibration.sha256}
    asked = {
        "parameters": {
            "backbone": first.backbone,
            "timestep": first.timestep,
            "method": first.method,
            "label": _label(first, evaluator),
            "options": dict(first.options),
            "bits": first.bits,
            "seeds": sorted(experiment.seed for experiment in experiments),
        },
        "weights_sha256": evaluator.weights_sha256(first),
        "calibration": None if first.method in NO_CALIBRATION else calibration,
        "data": {
            "name": first.dataset,
            "images": len({pair.id for _, pair, _ in members}),
            "sha256": data_sha256,
        },
        "metrics": evaluator.identity,
        "evaluation": EVALUATION,
    }
    return {
        "run_id": stable_hash(asked)[:12],
        "profile": profile,
        **asked,
        "git": provenance.git_state(),
        "environment": evaluator.environment,
        "duration_s": {
            "build": round(sum(evaluator.model_info(experiment)["seconds"] for experiment in experiments), 2),
            "images": round(sum(measured.seconds for _, _, measured in members), 2),
        },
        "peak_memory_mib": round(provenance.peak_memory_mib()),
    }


def _label(experiment: Experiment, evaluator: Evaluator) -> str:
    return experiment.label or evaluator.parts.method(experiment.method).label
