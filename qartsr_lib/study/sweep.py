"""Tables of experiments: each quantized model is built once for all its data sets, each image kept by itself.

    run = run_table(grid(profile, ("maxmin",)), profile, data_root=DATA_ROOT)
    run.write("table1")

An interrupted sweep continues where it stopped and ends with the same numbers.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.base.registry import from_cells
from qartsr_lib.images.datasets.base import Pair, available_data, fingerprint
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods.setting import measured_layers
from qartsr_lib.study import results
from qartsr_lib.study.evaluator import (
    EVALUATION,
    FULL_PRECISION,
    NO_CALIBRATION,
    UNCALIBRATED,
    Evaluator,
    Experiment,
    Parts,
    ScoredImage,
    default_parts,
)
from qartsr_lib.study.measured import Measured, run_record
from qartsr_lib.study.profiles import Profile
from qartsr_lib.study.stats import few_note, mean_interval

if TYPE_CHECKING:
    from distributed import Client


def grid(profile: Profile, methods: Sequence[str]) -> list[Experiment]:
    """Full precision once per backbone and timestep, then every method at every bit width, on every data set.

    Of the seeds the profile's first alone: of methods without randomness.
    """
    settings = [FULL_PRECISION, *itertools.product(methods, profile.bits)]
    return [
        Experiment(backbone, timestep, method, bits, dataset, profile.seeds[0])
        for backbone, timestep in itertools.product(profile.backbones, profile.timesteps)
        for method, bits in settings
        for dataset in profile.datasets
    ]


def run_table(
    experiments: Sequence[Experiment],
    profile: Profile,
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    label: str = "table",
    parts: Parts | None = None,
    cache: RunCache | None = None,
    workers: str | Client = "",
) -> Measured:
    """Measure `experiments` and aggregate them over images and seeds.

    What is wrong with the data is found before the first image is computed; data sets that are not here are skipped and
    named.

    Args:
        experiments: such as `grid` gives; those that differ in nothing but the seed are aggregated into one row.
        profile: gives metrics, calibration list, max_images and max_side.
        data_root: folder of the benchmarks; else the environment's DATA_ROOT.
        parts: suppliers of backbones, methods and metrics; tests pass fakes.
        cache: where finished images are kept; the profile's own by default.
        workers: "" or "1" for this process, else see `parallel.connected`.

    Raises:
        QartsrError: no experiment at all, broken data, unknown names, missing weights, full disk, workers that differ.
    """
    if len(set(experiments)) != len(experiments):
        raise ValueError("the same experiment is listed twice")
    if not experiments:
        raise QartsrError(f"{label}: the settings of profile {profile.name!r} leave nothing to measure; see OVERRIDES")
    root = paths.data_root(data_root)
    asked = [experiment.dataset for experiment in experiments]
    pairs, skipped = available_data(asked, root, profile.max_images, profile.max_side)
    for dataset, reason in skipped.items():
        print(f"data set {dataset} is skipped: {reason}", flush=True)
    experiments = [experiment for experiment in experiments if experiment.dataset in pairs]
    models = [[(item, pair) for item in model for pair in pairs[item.dataset]] for model in _models(experiments)]
    cache = cache or RunCache.for_profile(profile.name)
    make = partial(_evaluator, experiments, profile, root, parts, cache, device)
    facts = {} if profile.max_side is None else {"max_side": profile.max_side}
    try:
        if workers in ("", "1"):
            evaluator = make()
            values = [(*item, evaluator.measure(*item)) for item in progress(list(itertools.chain(*models)), label)]
            abouts = {experiment: evaluator.about(experiment) for experiment in experiments}
        else:
            from qartsr_lib.study import parallel  # a plain run needs no Dask

            _check_known(experiments, profile)
            values, abouts, about_workers = parallel.measure(workers, make, models, cache.root, label)
            facts |= about_workers
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, and the same command continues there", file=sys.stderr)
        raise
    return aggregate(values, abouts, pairs, profile.name, facts)


def _check_known(experiments: Sequence[Experiment], profile: Profile) -> None:
    """A QartsrError for what no worker can know."""
    used = {name for experiment in experiments for name in (experiment.method, experiment.backbone)}
    if unknown := from_cells(*sorted(used), *profile.metrics):
        raise QartsrError(
            f"workers do not know {unknown[0]!r}, which a notebook's cell registered; leave WORKERS empty, or register "
            "it in a file of qartsr_lib (notebooks/README.md)"
        )


def build_model(experiment: Experiment, profile: Profile, *, data_root: str | Path | None = None):
    """The quantized backbone of an experiment, trained or found in the cache that `run_table` uses too."""
    cache = RunCache.for_profile(profile.name)
    return _evaluator([experiment], profile, paths.data_root(data_root), None, cache, "cpu").build(experiment)


def _evaluator(
    experiments: Sequence[Experiment], profile: Profile, root: Path | None, parts: Parts | None,
    cache: RunCache, device: str,
) -> Evaluator:
    calibrated = any(experiment.method not in NO_CALIBRATION for experiment in experiments)
    calibration = calibration_list(profile, root) if calibrated else UNCALIBRATED
    return Evaluator(parts or default_parts(profile), cache, profile.metrics, calibration, device)


def _models(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Experiments that share a quantized model, those next to each other that share a backbone; in order otherwise."""
    backbones: dict[tuple, dict[Experiment, list[Experiment]]] = {}
    for item in experiments:
        models = backbones.setdefault((item.backbone, item.timestep), {})
        models.setdefault(replace(item, dataset="", label=""), []).append(item)
    return [model for models in backbones.values() for model in models.values()]


def aggregate(
    values: Sequence[tuple[Experiment, Pair, ScoredImage]],
    abouts: Mapping[Experiment, Mapping[str, Any]],
    pairs: Mapping[str, Sequence[Pair]],
    profile: str,
    facts: Mapping[str, Any] | None = None,
) -> Measured:
    """Rows of `results.COLUMNS`, with per-image values, images and histories.

    A value is the mean over images of the mean over seeds; its interval is a bootstrap over images (seeds are
    repetitions of the method, not further photographs).

    Args:
        abouts: `Evaluator.about` each experiment.
        facts: what every record is to say besides.
    """
    groups: dict[Experiment, list[tuple[Experiment, Pair, ScoredImage]]] = {}
    for value in values:
        groups.setdefault(replace(value[0], seed=0), []).append(value)
    rows, per_image, records = [], [], []
    for first, members in groups.items():
        own = [abouts[experiment] for experiment in dict.fromkeys(experiment for experiment, *_ in members)]
        question = _question(first, sorted({item.seed for item, *_ in members}), own[0], pairs[first.dataset])
        model = (first.dataset, first.backbone, first.timestep, own[0]["label"], first.bits)
        long = pd.DataFrame(
            [
                (*model, item.seed, pair.id, metric, value, note)
                for item, pair, scored in members
                for metric, (value, note) in scored.scores.items()
            ],
            columns=[*results.PER_IMAGE_COLUMNS[:-1], "note"],
        ).astype({"value": float})
        seconds = {"build": sum(about["info"]["seconds"] for about in own)}
        seconds["images"] = sum(scored.seconds for *_, scored in members)
        cells = [results.cell_text(value) for value in long["value"]]
        records.append(run_record(profile, question, own[0]["environment"], seconds, cells) | (facts or {}))
        long.insert(len(results.PER_IMAGE_COLUMNS) - 1, "run_id", records[-1]["run_id"])
        per_image.append(long)
        rows += [_row(scored, [about["info"] for about in own]) for _, scored in long.groupby("metric", sort=False)]
    return Measured(
        profile,
        pd.DataFrame(rows, columns=list(results.COLUMNS)),
        records,
        pd.concat(per_image, ignore_index=True),
        {(experiment, pair.id): scored.png for experiment, pair, scored in values if scored.png},
        {experiment: about["info"]["history"] for experiment, about in abouts.items() if about["info"]["steps"]},
    )


def _question(first: Experiment, seeds: list[int], about: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    parameters = {name: getattr(first, name) for name in ("backbone", "timestep", "method", "bits")}
    return {
        "parameters": parameters | {"label": about["label"], "options": dict(first.options), "seeds": seeds},
        "weights_sha256": about["weights_sha256"],
        "calibration": None if first.method in NO_CALIBRATION else about["calibration"],
        "metrics": about["metrics"],
        "data": {"name": first.dataset, "images": len(pairs), "sha256": fingerprint(list(pairs))},
        "evaluation": EVALUATION,
    } | measured_layers(first.options, first.backbone)


def _row(scored: pd.DataFrame, infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One metric's row of the table."""
    by_image = scored.groupby("image", sort=True)["value"].mean().dropna().to_numpy()
    mean, low, high = mean_interval(by_image)
    notes = [*scored["note"], *(info["note"] for info in infos), few_note(len(by_image)) if len(by_image) else ""]
    seeds = scored.dropna(subset="value")["seed"].nunique() or len(infos)  # one that diverged has no part in the mean
    stored = [info["w_bits_effective"] for info in infos if info["w_bits_effective"] is not None]
    return {
        **scored.iloc[0][[*results.KEYS, "metric", "run_id"]],
        **{"value": mean, "ci_low": low, "ci_high": high, "n_images": len(by_image), "n_seeds": seeds},
        "steps": max(info["steps"] for info in infos),
        "w_bits_effective": float(np.mean(stored)) if stored else np.nan,
        "note": "; ".join(dict.fromkeys(filter(None, notes))),
    }
