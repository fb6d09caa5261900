"""A sweep as a process that can be struck, in a folder of its own, and what happened in it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qartsr_lib.base import paths
from qartsr_lib.base.cache import RunCache
from qartsr_lib.study.evaluator import Experiment, Parts
from qartsr_lib.study.profiles import Profile
from qartsr_lib.study.sweep import run_table

T = TypeVar("T")

TABLE = "faults"
TIMEOUT = 600  # seconds that a sweep may take
FULL = "full"  # while a file of this name lies in a trial's folder, its disk counts as full


class Watched(RunCache):
    """Writes down when a piece of work is looked for, begins and is there: a line "look|begin|end kind key pid" each.

    Args:
        root: see RunCache.
        log: the file, in a folder where `FULL` may be put.
        pause: seconds that an image takes longer, so that a fault finds it unfinished.
    """

    def __init__(self, root: Path, log: Path, pause: float) -> None:
        super().__init__(root)
        self.log, self.pause = log, pause

    def get(self, kind: str, key: str) -> Path | None:
        self._note("look", kind, key)
        return super().get(kind, key)

    def put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        def slow_and_limited(folder: Path) -> None:
            fill(folder)
            time.sleep(self.pause if kind == "sr" else 0)
            if (self.log.parent / FULL).exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self._note("begin", kind, key)
        folder = super().put(kind, key, slow_and_limited)
        self._note("end", kind, key)
        return folder

    def _note(self, *words: str) -> None:
        with open(self.log, "a", encoding="utf-8") as stream:
            stream.write(" ".join((*words, str(os.getpid()))) + "\n")


def sweep(
    items: Sequence[Experiment], profile: Profile, workers: str, pause: float, parts: Parts | None = None
) -> None:
    """What a client process of a trial does, under QARTSR_HOME: measure `items` and write the table."""
    cache = Watched(RunCache.for_profile(profile.name).root, paths.home() / "log", pause)
    run_table(items, profile, workers=workers, cache=cache, parts=parts).write(TABLE)


@dataclass(frozen=True)
class Trial:
    """One folder in which a sweep is run, struck and run again.

    Attributes:
        home: its QARTSR_HOME.
        command: runs the sweep, given "--workers W --pause SECONDS" too.
        pause: see Watched.
    """

    home: Path
    command: tuple[str, ...]
    pause: float = 0.3

    def start(self, workers: str) -> subprocess.Popen:
        """The sweep as a process that leads a group of its own, one thread per worker."""
        self.home.mkdir(parents=True, exist_ok=True)
        words = [*self.command, "--workers", workers, "--pause", str(self.pause)]
        return subprocess.Popen(
            words,
            env=_environment(self.home),
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_interrupts,
        )

    def run(self, workers: str) -> None:
        """The sweep to its end; an error where that is none."""
        succeed(self.start(workers))

    def notes(self) -> list[tuple[str, str, int]]:
        """("look", "begin" or "end", kind and key, process) in the order of events."""
        log = self.home / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [(words[0], f"{words[1]}/{words[2]}", int(words[3])) for words in map(str.split, lines)]

    def unfinished(self) -> dict[str, int]:
        """Images begun and not ended -> the process that computes each."""
        begun: dict[str, int] = {}
        for event, piece, process in self.notes():
            if event == "begin" and piece.startswith("sr/"):
                begun[piece] = process
            elif event == "end":
                begun.pop(piece, None)
        return begun

    def wait_until_in_the_middle(self, process: subprocess.Popen, finished: int = 3) -> int:
        """Wait for `finished` images of the trial and one that is being computed; returns who computes it."""

        def computing() -> int | None:
            ended = sum(event == "end" and piece.startswith("sr/") for event, piece, _ in self.notes())
            return next(iter(self.unfinished().values()), None) if ended >= finished else None

        return self._wait(process, computing)

    def wait_until_begun(self, process: subprocess.Popen, others: Collection[int] = ()) -> set[int]:
        """Wait until a process that is not one of `others` has begun to compute; returns all that have."""

        def begun() -> set[int] | None:
            seen = {pid for event, _, pid in self.notes() if event == "begin"}
            return seen if seen - set(others) else None

        return self._wait(process, begun)

    def _wait(self, process: subprocess.Popen, found: Callable[[], T | None]) -> T:
        """What `found` returns as soon as it is not None, while `process` runs."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if (result := found()) is not None:
                return result
            if process.poll() is not None:
                raise RuntimeError(f"the sweep ended before it could be struck: {process.communicate()[1]}")
            time.sleep(0.01)
        process.kill()
        raise RuntimeError(f"the sweep did not get as far as it had to in {TIMEOUT} s")

    def done_twice(self, damaged: Sequence[str] = ()) -> int:
        """Pieces begun by a process that looked for them after they had been finished; each of `damaged` may be, once.

        One that another process finishes between the look and the beginning is computed at once, as designed.
        """
        ended, late, twice = set(), set(), []
        for event, piece, process in self.notes():
            if event == "look":
                (late.add if piece in ended else late.discard)((piece, process))
            elif event == "begin" and (piece, process) in late:
                twice.append(piece)
            elif event == "end":
                ended.add(piece)
        for piece in damaged:
            if piece in twice:
                twice.remove(piece)
        return len(twice)


def succeed(process: subprocess.Popen) -> None:
    """Wait for a sweep that must end well."""
    _, errors = process.communicate(timeout=TIMEOUT)
    if process.returncode:
        raise RuntimeError(f"a sweep ended with status {process.returncode}: {errors}")


def end_with(process: subprocess.Popen, message: str) -> None:
    """Wait for a sweep that must end badly, and say so by a line with `message`."""
    _, errors = process.communicate(timeout=TIMEOUT)
    if not process.returncode or message not in errors:
        raise RuntimeError(f"expected a failure with {message!r}, got status {process.returncode}: {errors}")


def _heed_interrupts() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QARTSR_")}
    return kept | {"QARTSR_HOME": str(home), "OMP_NUM_THREADS": "1", "QARTSR_LOG_PROGRESS": "1"}


@contextmanager
def loopback(folder: Path, count: int = 2) -> Iterator[str]:
    """The address of a scheduler with `count` workers of one thread, processes of this machine."""
    file = folder / "scheduler.json"
    started = []

    def start(name: str, *words: str) -> None:
        base = [sys.executable, "-m", f"distributed.cli.{name}", "--scheduler-file", str(file), "--no-dashboard"]
        kept = {"env": _environment(folder), "start_new_session": True, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*base, *words], **kept))

    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        deadline = time.monotonic() + TIMEOUT
        # A worker that reads the file between its opening and its writing ends at once.
        while not (file.exists() and file.read_text(encoding="utf-8").rstrip().endswith("}")):
            if time.monotonic() > deadline:
                raise RuntimeError("the scheduler did not start")
            time.sleep(0.05)
        for _ in range(count):
            start("dask_worker", "--nthreads", "1", "--memory-limit", "0")
        yield json.loads(file.read_text(encoding="utf-8"))["address"]
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
