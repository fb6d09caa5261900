"""The faults: each strikes a sweep in its middle and returns once the sweep, started again if need be, has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from qartsr_lib.study.results import SORT_COLUMNS
from tests.faults.trial import FULL, Trial, end_with, succeed


def worker_killed(trial: Trial, workers: str) -> None:
    process = trial.start(workers)
    os.kill(trial.wait_until_in_the_middle(process), signal.SIGKILL)
    succeed(process)


def client_killed(trial: Trial, workers: str) -> None:
    process = trial.start(workers)
    trial.wait_until_in_the_middle(process)
    process.kill()
    process.communicate()
    trial.run(workers)


def disk_full(trial: Trial, workers: str) -> None:
    process = trial.start(workers)
    trial.wait_until_in_the_middle(process)
    (trial.home / FULL).touch()
    end_with(process, "the disk is full")
    (trial.home / FULL).unlink()
    trial.run(workers)


def entries_damaged(trial: Trial, workers: str) -> list[str]:
    """One image, one of its scores and one model, after the client was killed."""
    process = trial.start(workers)
    trial.wait_until_in_the_middle(process)
    process.kill()
    process.communicate()
    damaged = []
    for kind, name in (("sr", "sr.png"), ("scores", "answer.json"), ("model", "answer.json")):
        path = min((trial.home / ".cache" / "runs").glob(f"*/{kind}/*/[!.]*/{name}"))
        path.write_bytes(path.read_bytes()[:-10])
        damaged.append(f"{kind}/{path.parent.name}")
    trial.run(workers)
    return damaged


def two_runs_at_once(trial: Trial, workers: str) -> None:
    """The first stands still in its first piece until the second has begun one: neither can come too late."""
    plain = trial.start("")
    begun = trial.wait_until_begun(plain)
    plain.send_signal(signal.SIGSTOP)
    try:
        other = trial.start(workers)
        trial.wait_until_begun(other, begun)
    finally:
        plain.send_signal(signal.SIGCONT)
    for process in (plain, other):
        succeed(process)


def interrupt(trial: Trial, workers: str, finished: int = 3) -> None:
    process = trial.start(workers)
    trial.wait_until_in_the_middle(process, finished)
    os.killpg(process.pid, signal.SIGINT)
    end_with(process, "the same command continues")


def interrupted(trial: Trial, workers: str) -> None:
    interrupt(trial, workers)
    trial.run(workers)


LOCAL, CLUSTER = "local processes", "scheduler and workers"
#: (fault, on which workers) -> how it strikes; it may return pieces that have to be done again.
FAULTS: dict[tuple[str, str], Callable[[Trial, str], list[str] | None]] = {
    ("worker killed by signal 9", LOCAL): worker_killed,
    ("worker killed by signal 9", CLUSTER): worker_killed,
    ("client killed by signal 9 and started again", LOCAL): client_killed,
    ("client killed by signal 9 and started again", CLUSTER): client_killed,
    ("disk full", LOCAL): disk_full,
    ("disk full", CLUSTER): disk_full,
    ("three cache entries damaged", CLUSTER): entries_damaged,
    ("two runs on one folder at once", CLUSTER): two_runs_at_once,
    ("Ctrl-C", LOCAL): interrupted,
    ("Ctrl-C", CLUSTER): interrupted,
}


def strike(fault: tuple[str, str], trial: Trial, reference: Path, cluster: str) -> tuple[int, int, int]:
    """Carry out one fault, on local processes or on `cluster`: (results lost, changed, pieces computed twice)."""
    damaged = FAULTS[fault](trial, "2" if fault[1] == LOCAL else cluster)
    lost, changed = compared(reference, trial.home)
    return lost, changed, trial.done_twice(damaged or ())


def compared(reference: Path, home: Path) -> tuple[int, int]:
    """(rows of the reference's tables that are absent in `home`, rows that differ or are there in addition)."""
    lost = changed = 0
    for path in sorted((reference / "results").rglob("*.csv")):
        wanted, found = _rows(path), _rows(home / path.relative_to(reference))
        lost += len(wanted.keys() - found.keys())
        changed += sum(found[row] != wanted.get(row) for row in found)
    return lost, changed


def _rows(path: Path) -> dict[tuple, tuple]:
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, dtype=str, na_filter=False)
    names = [column for column in SORT_COLUMNS if column in frame.columns]
    return dict(
        zip(frame[names].itertuples(index=False, name=None), frame.itertuples(index=False, name=None), strict=True)
    )
