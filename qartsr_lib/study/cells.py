"""Cells of the study: quantize a backbone, upscale a data set, score it, aggregate.

    run = run_table(grid(profile, ("maxmin",)), profile, data_root=DATA_ROOT)
    run.write("table1")

Each quantized model is built once for all its data sets; each image's PNG and scores are entries of
the cache, so an interrupted sweep continues where it stopped and ends with the same numbers.
Evaluation is float32, batch 1, channels_last: low-bit networks amplify rounding, so these settings
belong to a run's key.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qartsr_lib.base import paths
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import Pair, available_data
from qartsr_lib.images.datasets.calibration import CalibrationList, calibration_list
from qartsr_lib.study.aggregate import aggregate
from qartsr_lib.study.evaluator import NO_CALIBRATION, Evaluator, Parts, ScoredImage, default_parts
from qartsr_lib.study.experiment import FULL_PRECISION, Experiment
from qartsr_lib.study.profiles import Profile
from qartsr_lib.study.table_run import TableRun

if TYPE_CHECKING:
    from distributed import Client


def grid(profile: Profile, methods: Sequence[str], seeds: Sequence[int] | None = None) -> list[Experiment]:
    """Full precision once per backbone and timestep, then every method at every bit width, on every data set.

    Args:
        seeds: of the methods; the profile's first alone by default, right for deterministic methods.
    """
    seeds = profile.seeds[:1] if seeds is None else seeds
    settings = [(*FULL_PRECISION, seeds[0]), *itertools.product(methods, profile.bits, seeds)]
    return [
        Experiment(backbone, timestep, method, bits, dataset, seed)
        for backbone, timestep in itertools.product(profile.backbones, profile.timesteps)
        for method, bits, seed in settings
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
) -> TableRun:
    """Measure `experiments` and aggregate them over images and seeds.

    Everything that can be wrong with the data is found before the first image is computed. Data
    sets that this machine lacks are skipped and named in the result.

    Args:
        experiments: such as `grid` gives; seeds of one cell are aggregated into one row.
        profile: gives metrics, calibration list, max_images and max_side.
        data_root: folder of the benchmarks; else the environment's DATA_ROOT.
        device: where models run.
        label: shown beside the progress bar.
        parts: suppliers of backbones, methods and metrics; tests pass fakes.
        cache: where finished images are kept; the profile's own by default.
        workers: "" or "1" for this process, another number for so many local processes, or the
            address or scheduler file of a Dask cluster (see `workers`); a Dask client is used as it is.

    Raises:
        QartsrError: broken data, unknown names, missing weights, full disk, workers that differ.
    """
    if len(set(experiments)) != len(experiments):
        raise ValueError("the same experiment is listed twice")
    root = paths.data_root(data_root)
    asked = [experiment.dataset for experiment in experiments]
    pairs, skipped = available_data(asked, root, profile.max_images, profile.max_side)
    for dataset, reason in skipped.items():
        print(f"data set {dataset} is skipped: {reason}", flush=True)
    experiments = sorted(
        (experiment for experiment in experiments if experiment.dataset in pairs), key=_building_order(experiments)
    )
    calibrated = any(experiment.method not in NO_CALIBRATION for experiment in experiments)
    make = partial(_evaluator, profile, root, calibrated, device, parts, cache or RunCache.for_profile(profile.name))
    work = [(experiment, pair) for experiment in experiments for pair in pairs[experiment.dataset]]
    try:
        values, evaluator, facts = _measured(work, make, workers, label)
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, and the same command continues there", file=sys.stderr)
        raise
    table, per_image, records = aggregate(values, evaluator, pairs, profile.name)
    limits = {} if profile.max_side is None else {"max_side": profile.max_side}
    records = [record | limits | facts for record in records]
    images = {(experiment, pair.id): measured.png for experiment, pair, measured in values if measured.png}
    trained = [experiment for experiment in experiments if evaluator.model_info(experiment)["steps"]]
    histories = {experiment: evaluator.history(experiment) for experiment in trained}
    return TableRun(profile.name, table, per_image, records, skipped, images, histories)


def _measured(
    work: Sequence[tuple[Experiment, Pair]], make: Callable[..., Evaluator], workers: str | Client, label: str
) -> tuple[list[tuple[Experiment, Pair, ScoredImage]], Evaluator, dict[str, Any]]:
    """(values in the order of `work`, an evaluator that finds them, what records say about workers)."""
    if workers in ("", "1"):
        evaluator = make()
        return [(*item, evaluator.measure(*item)) for item in progress(work, label)], evaluator, {}
    from qartsr_lib.study.workers import measure  # a plain run needs no Dask

    return measure(workers, make, work, label)


def build_model(experiment: Experiment, profile: Profile, *, data_root: str | Path | None = None, device: str = "cpu"):
    """The quantized backbone of an experiment, trained or found in the cache that `run_table` uses too."""
    calibrated = experiment.method not in NO_CALIBRATION
    cache = RunCache.for_profile(profile.name)
    return _evaluator(profile, paths.data_root(data_root), calibrated, device, None, cache).build(experiment)


def _evaluator(
    profile: Profile,
    root: Path | None,
    calibrated: bool,
    device: str,
    parts: Parts | None,
    cache: RunCache,
    kind: type[Evaluator] = Evaluator,
) -> Evaluator:
    return kind(
        parts or default_parts(profile),
        cache,
        profile.metrics,
        calibration_list(profile, root) if calibrated else CalibrationList("none", [], ""),
        device,
    )


def _building_order(experiments: Sequence[Experiment]):
    """Sort key that brings together what shares a backbone, then what shares a quantized model."""
    backbones = list(dict.fromkeys((item.backbone, item.timestep) for item in experiments))
    models = list(dict.fromkeys((item.method, item.bits, item.seed, item.options) for item in experiments))
    return lambda item: (
        backbones.index((item.backbone, item.timestep)),
        models.index((item.method, item.bits, item.seed, item.options)),
    )
