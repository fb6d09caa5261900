"""A sweep on workers, as this process sees it: what is absent goes to them, what they put into the cache is read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed, fire_and_forget

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.study.evaluator import Evaluator, ScoredImage
from qartsr_lib.study.experiment import Experiment
from qartsr_lib.study.workers.connection import connected
from qartsr_lib.study.workers.task import Work, identity_of, measure_model, require_equal, survey

#: How often work may come back unfinished (entries damaged, tasks cancelled by somebody else) before that is an error.
ROUNDS = 5


class Absent(QartsrError):
    """An entry of the cache that a worker has to make."""


class _Finished(RunCache):
    """A cache to read from."""

    def put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        raise Absent(f"{self.folder(kind, key)}: disappeared while tables were being made; run again")


class Reader(Evaluator):
    """Finds what workers have finished, and computes nothing itself: it may lack their environment, and their GPU."""

    def __init__(self, parts, cache: RunCache, metrics, calibration, workers_device: str) -> None:
        super().__init__(parts, _Finished(cache.root), metrics, calibration, "cpu")
        self.workers_device = workers_device

    def build(self, experiment: Experiment) -> Any:
        raise Absent(
            f"{experiment.method} {experiment.bits}: its model disappeared while tables were being made; run again"
        )


def measure(
    workers: str | Client, make: Callable[..., Evaluator], work: Work, label: str
) -> tuple[list[tuple[Experiment, Pair, ScoredImage]], Evaluator, dict[str, Any]]:
    """Measure `work` on workers.

    Args:
        workers: see `connected`.
        make: gives the sweep's evaluator, here (of class `kind`) and on a worker; can be pickled.
        work: sorted so that what shares a model stands together.
        label: shown beside the progress bar.

    Returns:
        The values in the order of `work`, an evaluator that finds all of them, and what run records
        say about the workers.

    Raises:
        QartsrError: no workers, workers that differ, or whatever stopped one of them; what the
            others had finished is kept.
    """
    with connected(workers) as client:
        reader = make(kind=Reader)
        reader.environment = agreed_environment(client, reader)
        for number in range(ROUNDS):
            values, absent = _found(reader, work)
            if not absent:
                return values, reader, _facts(client, workers)
            _fill(client, make, _tasks(reader, work, absent, number), f"{label}, models")
    raise QartsrError(
        f"workers {workers}: {len(absent)} results are not in {reader.cache.root} although workers "
        "say that they have put them there; check that they see the same file system"
    )


def agreed_environment(client: Client, reader: Evaluator) -> dict[str, Any]:
    """The environment that all workers have, once there is one.

    Raises:
        QartsrError: workers differ, run another version of the library or do not see the cache.
    """
    if not client.scheduler_info(n_workers=1)["workers"]:
        print(f"waiting for workers of {client.scheduler.address}", flush=True)
    client.wait_for_workers(1)
    token = write_text(reader.cache.root / f".seen-{uuid.uuid4().hex}", "do workers see this?")
    try:
        found = client.run(survey, reader.workers_device, token)
    except Exception as error:  # Dask passes on the text alone
        if "ModuleNotFoundError" not in str(error):
            raise
        raise QartsrError(f"workers cannot import the library ({error}); start them from its environment") from error
    finally:
        token.unlink(missing_ok=True)
    (first, wanted), *others = found.items()
    for address, other in others:
        require_equal(wanted, other, f"workers {first} and {address} differ")
    require_equal({"source": provenance.source_sha256()}, {"source": wanted["source"]}, "workers have other code")
    if not wanted["sees the cache"]:
        raise QartsrError(f"{reader.cache.root}: is not seen by the workers; set QARTSR_HOME to a folder they share")
    return wanted["environment"]


def _facts(client: Client, workers: str | Client) -> dict[str, Any]:
    peaks = client.run(provenance.peak_memory_mib, on_error="ignore").values()
    kind = "local processes" if isinstance(workers, str) and workers.isdigit() else "workers of a Dask cluster"
    return {"workers": f"{len(peaks)} {kind}", "peak_memory_mib": round(max(peaks, default=0))}


def _found(reader: Evaluator, work: Work) -> tuple[list[tuple[Experiment, Pair, ScoredImage]], set[Experiment]]:
    """(values that are in the cache, experiments of which something is not)."""
    values, absent = [], set()
    for experiment in dict.fromkeys(experiment for experiment, _ in work):
        try:
            reader.model_info(experiment)
        except Absent:
            absent.add(experiment)
    for experiment, pair in work:
        try:
            values.append((experiment, pair, reader.measure(experiment, pair)))
        except Absent:
            absent.add(experiment)
    return values, absent


def _tasks(reader: Evaluator, work: Work, absent: set[Experiment], number: int) -> dict[str, tuple[dict, Work]]:
    """Key -> (what determines the model, all its work), for models of which something is absent.

    The key depends neither on what is absent nor on this process, so that the same sweep, started
    again, asks for the same tasks: Dask then joins those that still run.
    """
    identities = {experiment: identity_of(reader, experiment) for experiment in dict.fromkeys(item for item, _ in work)}
    names = {experiment: stable_hash(identity) for experiment, identity in identities.items()}
    models: dict[str, tuple[dict, list]] = {}
    for experiment, pair in work:
        models.setdefault(names[experiment], (identities[experiment], []))[1].append((experiment, pair))
    wanted = [model for model in models.values() if any(experiment in absent for experiment, _ in model[1])]
    tasks = {}
    for identity, items in wanted:
        first, images = items[0][0], [(experiment.dataset, pair.id) for experiment, pair in items]
        determining = stable_hash([identity, images, number])
        tasks[f"{first.method} {first.bits} T={first.timestep}-{determining[:16]}"] = (identity, items)
    return tasks


def _fill(client: Client, make: Callable[..., Evaluator], tasks: Mapping[str, tuple[dict, Work]], label: str) -> None:
    """Let workers carry out `tasks`, to the end or until one fails."""
    futures = [client.submit(measure_model, make, *task, key=key) for key, task in tasks.items()]
    fire_and_forget(futures)  # they go on when this process is killed, and are joined when it starts again
    try:
        for future in progress(as_completed(futures, loop=client.loop), label, len(futures)):
            _examine(future, client)
    except BaseException:
        if client.status == "running":
            client.cancel(futures, force=True, reason="the sweep was stopped")
        raise


def _examine(future: Future, client: Client) -> None:
    """Raise what ended a task; one that somebody else cancelled is found absent later."""
    if future.cancelled():
        if client.status != "running":
            raise QartsrError("the connection to the Dask scheduler was lost; finished work is kept, run again")
        return
    try:
        error = future.result()
    except KilledWorker as killed:
        raise QartsrError(
            f"{future.key.rsplit('-', 1)[0]}: {killed.allowed_failures + 1} workers died while computing it (out of "
            "memory?); finished work is kept, run again with fewer workers or more memory"
        ) from killed
    if error is not None:
        raise error
