"""From the name of workers to a Dask client of them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import torch
from distributed import Client, LocalCluster, WorkerPlugin

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.machine import environment_variables

CONNECT_TIMEOUT = 30  # seconds
#: What local workers take their number of threads from.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: What else Dask leaves in this process's environment; removed afterwards.
_NANNY_WRITES = ("MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED", "__DASK_PARENT_PID")


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


@contextmanager
def connected(workers: str | Client) -> Iterator[Client]:
    """A client of the workers that `workers` names, see `resolved`; a client is passed through and left open.

    Raises:
        QartsrError: no such workers.
    """
    if isinstance(workers, Client):
        yield workers
        return
    workers = resolved(workers)
    if workers.isdigit():
        # What this process would use, shared out; OMP_NUM_THREADS decides through torch.
        with local(int(workers), max(1, torch.get_num_threads() // int(workers))) as client:
            yield client
        return
    where = {"scheduler_file": workers} if Path(workers).is_file() else {"address": workers}
    try:
        client = Client(**where, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise QartsrError(f"workers {workers}: no Dask scheduler answers there; check the address") from error
    with client:
        yield client


@contextmanager
def local(count: int, threads: int) -> Iterator[Client]:
    """A client of `count` processes on this machine with `threads` threads each, ended with the context."""
    # Without the nanny's malloc setting, which gives memory back at once and costs time; nor does a
    # limit end a worker here that would have fitted into a plain run.
    settings = {"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREADS, threads)}
    try:
        with (
            environment_variables(dict.fromkeys(THREADS, str(threads)), _NANNY_WRITES),
            dask.config.set(settings),
            LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # None would take port 8787, and warn where that is taken
                memory_limit=0,
                # Lines every 30 s, of long trainings alone: bars of several processes would only mix.
                env={"QARTSR_LOG_PROGRESS": "1", "TQDM_DELAY": "30"},
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
            _quiet_end(),
        ):
            client.register_plugin(_AtTheClientsSide())
            yield client
    finally:
        logging.getLogger("distributed.nanny").setLevel(logging.NOTSET)


class _AtTheClientsSide(WorkerPlugin):
    """A terminal sends Ctrl-C to local workers too, but ending them, and saying so, is the client's business."""

    def setup(self, worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Tell of workers that die during a sweep, but not of those that take long to go after it."""
    nanny = logging.getLogger("distributed.nanny")
    try:
        yield
    finally:
        nanny.setLevel(logging.ERROR)
