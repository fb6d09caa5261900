"""Outputs of a system outside this study, as further rows: a folder of its images is scored like ours.

    systems = outside.find_outputs({"DiffBIR": "outputs/diffbir"}, profile, data_root)
    systems += networks.outputs(profile, data_root)
    run = outside.add_rows(run, systems, profile)

Such rows have the backbone "outside", T = 0 (there is none) and W32A32; stored bits are unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import SCALE, Pair, available_data, central_file
from qartsr_lib.images.datasets.pairing import match
from qartsr_lib.images.image import list_images, read_image
from qartsr_lib.images.metrics import require_equal_size
from qartsr_lib.images.networks import NETWORKS
from qartsr_lib.methods import METHODS
from qartsr_lib.study.evaluator import (
    FULL_PRECISION,
    UNCALIBRATED,
    Evaluator,
    Experiment,
    Parts,
    ScoredImage,
    default_parts,
)
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.paper import BICUBIC_LABEL, NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.profiles import Profile
from qartsr_lib.study.sweep import aggregate

NOTE = "outside system"

Folders = str | Path | Mapping[str, str | Path]


class Outputs(NamedTuple):
    """One system's images of one data set."""

    experiment: Experiment  # what they are in a table
    pairs: list[Pair]  # of the data set, as the run has them
    files: dict[str, Path]  # image id -> the system's image, of the reference's size
    network: Mapping[str, Any] | None = None  # what made them here, see `images.networks.identity`

    @property
    def sha256(self) -> dict[str, str]:
        """File name -> sha256 of each image, in the order of `pairs`."""
        return {self.files[pair.id].name: remembered_sha256(self.files[pair.id]) for pair in self.pairs}

    @property
    def note(self) -> str:
        """Of its rows."""
        return f"{NOTE}, trained for {self.network['trained_for']}" if self.network else NOTE

    @property
    def facts(self) -> dict[str, Any]:
        """Of its record."""
        return {"outputs": self.sha256} | ({"network": self.network} if self.network else {})


def find_outputs(
    systems: Mapping[str, Folders], profile: Profile, data_root: str | Path | None = None
) -> list[Outputs]:
    """Pair every system's images with the references (see `pairing.match`) and check them all; scores nothing.

    Args:
        systems: name in tables -> {data set: folder}, or one folder: it holds a subfolder per data set, or, where the
            run has one data set only, the images themselves. A data set that the run lacks is left out.
        profile: gives data sets, max_images and max_side; whole images are given, and cropped as the references are.

    Raises:
        QartsrError: a taken name, a missing folder or image, an unreadable image or one of another size.
    """
    if not systems:
        return []
    root = paths.data_root(data_root)
    pairs, _ = available_data(profile.datasets, root, profile.max_images)
    measured, _ = available_data(profile.datasets, root, profile.max_images, profile.max_side)
    taken = {METHODS.get(method).label for method in METHODS} | {BICUBIC_LABEL, *NETWORKS}
    found = []
    for name, folders in systems.items():
        try:
            if not isinstance(name, str) or not name.strip() or name in taken:
                raise QartsrError(f"name the system otherwise; {', '.join(sorted(taken))} are taken")
            for dataset, folder in _by_dataset(folders, list(pairs)).items():
                files = _files(folder, pairs[dataset], DATASETS.get(dataset).pairs(root))
                if profile.max_side is not None:
                    files = {key: central_file(path, profile.max_side, multiple=SCALE) for key, path in files.items()}
                experiment = Experiment(OUTSIDE, NO_TIMESTEP, *FULL_PRECISION, dataset, label=name)
                found.append(Outputs(experiment, measured[dataset], files))
        except QartsrError as error:
            raise QartsrError(f"outside system {name!r}: {error}") from error
    return found


def add_rows(run: Measured, systems: Sequence[Outputs], profile: Profile, parts: Parts | None = None) -> Measured:
    """The `run` of `sweep.run_table` (see there for the others) with rows, per-image values, records and images added.

    Each record of `systems` (see `find_outputs`) holds the sha256 of every file, "outputs", and of a network what it
    is, "network"; its rows' notes say what it was trained for.
    """
    if not systems:
        return run
    cache = RunCache.for_profile(profile.name)
    scorer = _Scorer(systems, parts or default_parts(profile), cache, profile.metrics, UNCALIBRATED, "cpu")
    work = [(system.experiment, pair) for system in systems for pair in system.pairs]
    values = [(*item, scorer.measure(*item)) for item in progress(work, "outside systems")]
    abouts = {system.experiment: scorer.about(system.experiment) for system in systems}
    added = aggregate(values, abouts, {system.experiment.dataset: system.pairs for system in systems}, profile.name)
    records = [record | system.facts for record, system in zip(added.records, systems, strict=True)]
    first = added.table["method"].map({system.experiment.label: system.note for system in systems})
    notes = ["; ".join(filter(None, pair)) for pair in zip(first, added.table["note"], strict=True)]
    return dataclasses.replace(
        run,
        table=pd.concat([run.table, added.table.assign(note=notes)], ignore_index=True),
        per_image=pd.concat([run.per_image, added.per_image], ignore_index=True),
        records=run.records + records,
        images=run.images | added.images,
    )


class _Scorer(Evaluator):
    """Scores images that are there already; no model stands behind them."""

    def __init__(self, systems: Sequence[Outputs], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.systems = {system.experiment: system for system in systems}

    def model_info(self, experiment: Experiment) -> dict[str, Any]:
        return {"w_bits_effective": None, "steps": 0, "seconds": 0.0, "note": ""}

    def weights_sha256(self, experiment: Experiment) -> str:
        """In place of weights: the hash of all images."""
        return stable_hash(self.systems[experiment].sha256)

    def measure(self, experiment: Experiment, pair: Pair) -> ScoredImage:
        image = self.systems[experiment].files[pair.id]
        return ScoredImage(image, *self.score(image, pair.hr))


def _by_dataset(folders: Folders, datasets: Sequence[str]) -> dict[str, Path]:
    """Data set -> folder, for the data sets of the run."""
    given = list(folders.values()) if isinstance(folders, Mapping) else [folders]
    if wrong := [folder for folder in given if not isinstance(folder, (str, Path))]:
        raise QartsrError(f"{wrong[0]!r} is no folder; give a folder, or a folder per data set")
    if isinstance(folders, Mapping):
        known = {DATASETS.get(dataset).name: Path(folder).expanduser() for dataset, folder in folders.items()}
        for dataset in set(known) - set(datasets):
            print(f"data set {dataset} is not part of this run: the outside system's {known[dataset]} is left out")
        return {dataset: known[dataset] for dataset in datasets if dataset in known}
    root = Path(folders).expanduser()
    if not root.is_dir():
        raise QartsrError(f"{root}: no such folder; check the path")
    nested = {dataset: root / dataset for dataset in datasets if (root / dataset).is_dir()}
    if nested or len(datasets) == 1:
        return nested or {datasets[0]: root}
    raise QartsrError(f"{root}: holds no folder {' or '.join(datasets)}; name a folder per data set")


def _files(folder: Path, pairs: Sequence[Pair], everything: Sequence[Pair]) -> dict[str, Path]:
    """Image id -> the system's file, checked against the reference's size; images of `everything` may lie there."""
    images, references = list_images(folder), [pair.hr for pair in everything]
    found = match(*({path: path.name for path in paths} for paths in (images, references)))
    by_reference = {hr: sr for sr, hr in found.pairs}
    missing = [pair for pair in pairs if pair.hr not in by_reference]
    stray = [f"{folder}: {line}" for line in found._replace(unused=[]).remarks()]
    if missing:
        lacks = f"{folder}: has no image for {missing[0].hr.name} ({len(missing)} missing); add it"
        raise QartsrError("; ".join([lacks, *stray]))
    for line in stray:
        print(line)
    for pair in pairs:
        sr = by_reference[pair.hr]
        require_equal_size(sr, read_image(sr), pair.hr, read_image(pair.hr))
    return {pair.id: by_reference[pair.hr] for pair in pairs}
