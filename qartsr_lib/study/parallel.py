"""A sweep on several workers: local processes, or a Dask cluster that shares this machine's file system.

Workers fill the cache: one task is one quantized model with all its images, measured by an ordinary `Evaluator`. All of
them must have the same environment, under which results are kept and recorded. A worker that dies is Dask's business:
its task starts again elsewhere and finds in the cache what had finished. Tasks outlive a client that is killed; the
same sweep, started again, joins them.
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask
import distributed
import pandas as pd
import torch
from distributed import Client, Future

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256, write_text
from qartsr_lib.base.machine import environment_variables
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.study.evaluator import Evaluator, Experiment, ScoredImage

CONNECT_TIMEOUT = 30  # seconds
#: What local workers take their number of threads from, and what else Dask leaves in this process's environment.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DASK_WRITES = ("MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED", "__DASK_PARENT_PID")
#: On a worker: one model at a time, however many threads it has (a GPU's memory holds one), and the evaluator of the
#: sweep by its name, with its loaded backbone.
_TURN = threading.Lock()
_evaluators: dict[str, Evaluator] = {}

Items = Sequence[tuple[Experiment, Pair]]
Value = tuple[Experiment, Pair, ScoredImage]
Answer = tuple[dict[str, Any], list[Value], dict[Experiment, dict[str, Any]]]


def resolved(workers: str | int) -> str:
    """`workers` if it is a number of processes or the address of a scheduler, the full path of a scheduler file.

    Raises:
        QartsrError: it is none of them.
    """
    workers = str(workers)  # papermill's -p makes a number of "2"
    if workers.isdigit() and int(workers) or "://" in workers:
        return workers
    if Path(workers).is_file():
        return str(Path(workers).resolve())
    raise QartsrError(
        f"workers {workers!r}: give a number of processes, the address of a Dask scheduler (tcp://host:8786) "
        "or its scheduler file"
    )


def connected(workers: str | Client) -> AbstractContextManager[Client]:
    """A client of the workers that `workers` names.

    Args:
        workers: a number of local processes, the address or scheduler file of a Dask cluster, or a client, which is
            left open.

    Raises:
        QartsrError: no such workers.
    """
    if isinstance(workers, Client):
        return nullcontext(workers)
    workers = resolved(workers)
    if workers.isdigit():  # what this process would use, shared out; OMP_NUM_THREADS decides through torch
        return local(int(workers), max(1, torch.get_num_threads() // int(workers)))
    where = {"scheduler_file": workers} if Path(workers).is_file() else {"address": workers}
    try:
        return Client(**where, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise QartsrError(f"workers {workers}: no Dask scheduler answers there; check the address") from error


@contextmanager
def local(count: int, threads: int) -> Iterator[Client]:
    """A client of `count` processes on this machine with `threads` threads each, ended with the context."""
    nanny = logging.getLogger("distributed.nanny")
    settings: dict = {"n_workers": count, "threads_per_worker": 1, "memory_limit": 0, "host": "127.0.0.1"}
    settings["dashboard_address"] = "127.0.0.1:0"  # None would take port 8787, or warn
    quiet = {"QARTSR_LOG_PROGRESS": "1", "TQDM_DELAY": "30"}  # lines every 30 s, of long trainings alone
    with (
        environment_variables(dict.fromkeys(_THREADS, str(threads)), _DASK_WRITES),
        # Without the nanny's malloc setting, which gives memory back at once and costs time; nor does a
        # limit end a worker here that would have fitted into a plain run.
        dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREADS, threads)}),
        distributed.LocalCluster(env=quiet, **settings) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(_AtTheClientsSide())
        nanny.setLevel(logging.WARNING)  # tells of workers that die during a sweep
        try:
            yield client
        finally:
            nanny.setLevel(logging.ERROR)  # and not of those that take long to go after it


class _AtTheClientsSide(distributed.WorkerPlugin):
    """A terminal sends Ctrl-C to local workers too, but ending them, and saying so, is the client's business."""

    def setup(self, worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)


def measure(
    workers: str | Client, make: Callable[[], Evaluator], models: Iterable[Items], folder: Path, label: str
) -> tuple[list[Value], dict[Experiment, dict[str, Any]], dict[str, Any]]:
    """Measure `models` on workers (see `connected`), each with the evaluator that `make` makes there.

    Args:
        folder: the cache's; workers have to see it.

    Returns:
        The values in the order of `models`, `Evaluator.about` each experiment, what run records say about the workers.

    Raises:
        QartsrError: no workers, workers that differ, or whatever stopped one of them; what the
            others had finished is kept.
    """
    name, mark = uuid.uuid4().hex, folder / "SEEN_BY_WORKERS"
    if not mark.is_file():
        write_text(mark, name)
    same = {"source": provenance.source_sha256(), "QARTSR_HOME": mark.read_text()}
    with connected(workers) as client:
        if not client.scheduler_info(n_workers=1)["workers"]:
            print(f"waiting for workers of {client.scheduler.address}", flush=True)
        # One worker's environment first; the others have to have the same, or refuse their tasks.
        same, *_ = _answer(client.submit(measure_model, name, make, mark, same, [], pure=False), client)
        tasks = {_title(same, items): (name, make, mark, same, items) for items in models}
        futures = [client.submit(measure_model, *task, key=title) for title, task in tasks.items()]
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
    values = [value for title in tasks for value in answers[title][1]]
    return values, {key: about for *_, abouts in answers.values() for key, about in abouts.items()}, facts


def _title(same: dict[str, Any], items: Items) -> str:
    """A task's name and all that it depends on: the same sweep, started again, joins what still runs."""
    first = items[0][0]
    asked = [[vars(item), *map(remembered_sha256, (pair.lq, pair.hr))] for item, pair in items]
    return f"{first.method} {first.bits} T={first.timestep}-{stable_hash([same, asked])[:16]}"


def _answer(future: Future, client: Client) -> Answer:
    """What a task returned; raises what ended it otherwise."""
    name = future.key.rsplit("-", 1)[0]
    try:
        answer = None if future.cancelled() else future.result()
    except distributed.KilledWorker as killed:
        raise QartsrError(
            f"{name}: {killed.allowed_failures + 1} workers died while computing it (out of memory?); finished work "
            "is kept, run again with fewer workers or more memory"
        ) from killed
    except ModuleNotFoundError as error:
        raise QartsrError(f"workers cannot import the library ({error}); start them from its environment") from error
    if answer is None:
        stop = f"somebody else cancelled {name}" if client.status == "running" else "the Dask scheduler was lost"
        raise QartsrError(f"{stop}; finished work is kept, run again")
    if isinstance(answer, QartsrError):
        raise answer
    return answer


def measure_model(
    name: str, make: Callable[[], Evaluator], mark: Path, same: Mapping[str, Any], items: Items
) -> Answer | QartsrError | None:
    """On a worker: measure one model's images with the sweep's evaluator, kept by `name`, if the worker is the `same`.

    Problems that a user can mend are returned, not logged; None where the task was cancelled.
    """
    worker, values = distributed.get_worker(), []
    with _TURN:
        try:
            if name not in _evaluators:
                _evaluators.clear()  # free the old one before loading
                _evaluators[name] = make()
            evaluator = _evaluators[name]
            own = evaluator.identity | {"QARTSR_HOME": mark.read_text() if mark.is_file() else "another folder"}
            _require_equal(same, own, worker.address)
            abouts = {experiment: evaluator.about(experiment) for experiment, _ in items}  # makes the model
            for item in items:
                task = worker.state.tasks.get(worker.get_current_task())
                if task is None or task.state == "cancelled":  # which Dask does not interrupt
                    return None
                values.append((*item, evaluator.measure(*item)))
            return own, values, abouts
        except QartsrError as error:
            return error


def _require_equal(wanted: Mapping[str, Any], found: Mapping[str, Any], address: str) -> None:
    wanted, found = (pd.json_normalize(dict(nested)).astype(object).iloc[0].to_dict() for nested in (wanted, found))
    for name, value in wanted.items():
        if value != found.get(name):
            raise QartsrError(
                f"worker {address} differs in {name}: {value} and {found.get(name)}; all need the same packages, "
                "files, device and threads, one QARTSR_HOME, and a start after the last change of the code"
            )
