"""A sweep on several workers: local processes, or a Dask cluster that shares this machine's file system.

Workers fill the cache: one task is one quantized model with all its images, measured by an ordinary `Evaluator`. All
need the same environment, under which results are kept and recorded. The task of a worker that dies starts again
elsewhere and finds in the cache what had finished; tasks outlive a killed client, whose sweep, run again, joins them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import distributed
import torch
from distributed import Client

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256, write_text
from qartsr_lib.base.machine import checked_workers
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.study.evaluator import MARK, Evaluator, Experiment

CONNECT_TIMEOUT = 30  # seconds
Items = Sequence[tuple[Experiment, Pair]]  # of one model
_turn = threading.Lock()  # on a worker: one model at a time, however many threads it has (a GPU's memory holds one)
_evaluators: dict[str, Evaluator] = {}  # on a worker: the present sweep's by its name, with its loaded backbone


def connected(workers: str | Client) -> AbstractContextManager[Client]:
    """A client of the workers that `workers` names (see `checked_workers`); a client itself is left open."""
    if isinstance(workers, Client):
        return nullcontext(workers)
    workers = checked_workers(workers)
    if workers.isdigit():  # what this process would use, shared out; OMP_NUM_THREADS decides through torch
        return local(int(workers), max(1, torch.get_num_threads() // int(workers)))
    where = "scheduler_file" if Path(workers).is_file() else "address"
    try:
        return Client(**{where: workers}, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise QartsrError(f"workers {workers}: no Dask scheduler answers there; check the address") from error


@contextmanager
def local(count: int, threads: int) -> Iterator[Client]:
    """A client of `count` processes on this machine with `threads` threads each, ended with the context."""
    inherited = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    quiet = {"QARTSR_LOG_PROGRESS": "1", "TQDM_DELAY": "30"}  # lines every 30 s, of long trainings alone
    settings = {"threads_per_worker": 1, "memory_limit": 0, "env": quiet, "preload": [__name__]}
    place = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}  # where port 8787 may be taken
    with (
        mock.patch.dict(os.environ, inherited),  # which also takes back what Dask adds
        # Dask's own would give memory back at once, which costs time; nor does a limit end a worker here.
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        distributed.LocalCluster(n_workers=count, **settings, **place) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def dask_setup(worker: distributed.Worker) -> None:
    """Of local workers: a terminal sends them Ctrl-C too, but ending them, and saying so, is the client's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


def measure(
    workers: str | Client, make: Callable[[], Evaluator], models: Iterable[Items], folder: Path, label: str
) -> tuple[list[tuple], dict[Experiment, dict[str, Any]], dict[str, Any]]:
    """Measure `models` on workers, each with the evaluator that `make` makes there over the cache in `folder`.

    Returns (experiment, pair, ScoredImage) in the order of `models`, `Evaluator.about` each experiment, and what run
    records say about the workers. A QartsrError where something stops one keeps what the others had finished.
    """
    name, mark = uuid.uuid4().hex, folder / MARK
    same = {"source": provenance.source_sha256()}
    same["QARTSR_HOME"] = (mark if mark.is_file() else write_text(mark, name)).read_text()
    with connected(workers) as client:
        if not client.scheduler_info(n_workers=1)["workers"]:
            print(f"waiting for workers of {client.scheduler.address}", flush=True)
        # One worker's environment first; the others have to have the same, or refuse their tasks.
        same, *_ = _answer(client.submit(measure_model, name, make, same, [], pure=False), client)
        models = {_title(same, items): items for items in models}
        futures = client.map(partial(measure_model, name, make, same), list(models.values()), key=list(models))
        distributed.fire_and_forget(futures)  # they go on when this process is killed
        try:
            done = progress(distributed.as_completed(futures, loop=client.loop), f"{label}, models", len(futures))
            answers = {future.key: _answer(future, client) for future in done}
        except BaseException:
            if client.status == "running":
                client.cancel(futures, force=True, reason="the sweep was stopped")
            raise
        peaks = client.run(provenance.peak_memory_mib, on_error="ignore").values()
    kind = "local processes" if isinstance(workers, str) and workers.isdigit() else "workers of a Dask cluster"
    facts = {"workers": f"{len(peaks)} {kind}", "peak_memory_mib": round(max(peaks, default=0))}
    values = [value for title in models for value in answers[title][1]]
    return values, {key: about for *_, abouts in answers.values() for key, about in abouts.items()}, facts


def _title(same: Mapping[str, Any], items: Items) -> str:
    """A task's name and all that it depends on: the same sweep, started again, joins what still runs."""
    first = items[0][0]
    asked = [[vars(item), *map(remembered_sha256, (pair.lq, pair.hr))] for item, pair in items]
    return f"{first.method} {first.bits} T={first.timestep}-{stable_hash([same, asked])[:16]}"


def _answer(future: distributed.Future, client: Client) -> tuple:
    """What a task returned; raises what ended it otherwise."""
    name, again = future.key.rsplit("-", 1)[0], "finished work is kept, run again"
    try:
        answer = None if future.cancelled() else future.result()
    except distributed.KilledWorker as killed:
        died = f"{name}: {killed.allowed_failures + 1} workers died while computing it (out of memory?)"
        raise QartsrError(f"{died}; {again} with fewer workers or more memory") from killed
    except ModuleNotFoundError as error:
        raise QartsrError(f"workers cannot import the library ({error}); start them from its environment") from error
    if answer is None:
        stop = f"somebody else cancelled {name}" if client.status == "running" else "the Dask scheduler was lost"
        raise QartsrError(f"{stop}; {again}")
    return answer


def measure_model(name: str, make: Callable[[], Evaluator], same: Mapping[str, Any], items: Items) -> tuple | None:
    """On a worker that is the `same`: its identity, values, abouts, by the sweep's evaluator; None where cancelled."""
    worker, values = distributed.get_worker(), []
    with _turn:
        if name not in _evaluators:
            _evaluators.clear()  # free the old one before loading
            _evaluators[name] = make()
        evaluator = _evaluators[name]
        evaluator.require(same, worker.address)
        abouts = {experiment: evaluator.about(experiment) for experiment, _ in items}  # makes the model
        for item in items:
            task = worker.state.tasks.get(worker.get_current_task())
            if task is None or task.state == "cancelled":  # which Dask does not interrupt
                return None
            values.append((*item, evaluator.measure(*item)))
    return evaluator.identity, values, abouts
