"""What command lines share: beginning and end, threads, devices, workers (no torch)."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qartsr_lib.base.errors import QartsrError

WORKER_MEMORY = 3 * 10**9  # bytes that a process of a sweep may take


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """`run(options)` of `arguments` (default: the process's own); the exit status is what it returns, or 0.

    It is 2 for a QartsrError, or a name that is too long for any file, and 130 for Ctrl-C, told in one line.
    """
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal cannot show ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run(options) or 0
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {error.filename}: the name is too long for a file; check the path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished files are kept: start the same command again", file=sys.stderr)
        return 130


def positive(text: str) -> int:
    """Of argparse: a whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: choose a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Of argparse: a whole number of at least 0 that random generators take."""
    if not text.strip().isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text}: choose a whole number from 0 to 2**63 - 1")
    return int(text)


def above_zero(text: str) -> float:
    """Of argparse: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: choose a number above 0")
    return number


def named_path(text: str) -> Path:
    """Of argparse: a path; "" would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name a file or folder")
    return Path(text)


def checked(device: str) -> str:
    """`device` ("cpu", "cuda", "cuda:1"), or a QartsrError where this machine does not have it."""
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise QartsrError(f"device {device!r}: choose cpu, cuda or cuda:N")
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise QartsrError(f"device {device!r}: there is no such GPU here; use cpu")
    return device


def checked_workers(workers: str | int) -> str:
    """`workers` if it is a number of processes or a Dask scheduler's address, the full path of a scheduler file."""
    workers = str(workers)  # papermill's -p makes a number of "2"
    if workers.isdigit() and int(workers) or "://" in workers:
        return workers
    if Path(workers).is_file():
        return str(Path(workers).resolve())
    raise QartsrError(
        f"workers {workers!r}: give a number of processes, the address of a Dask scheduler (tcp://host:8786) "
        "or its scheduler file"
    )


def usual_workers() -> str:
    """As many local processes as this machine has threads and memory for, "" for one: the caller's own.

    A process each with one thread trains about 1.4 times as fast as one process with two, does not wait for other
    programs' threads, and gives the same bits whatever the number of cores. OMP_NUM_THREADS limits it.
    """
    import torch
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT  # both know a container's limits

    count = min(torch.get_num_threads(), CPU_COUNT, MEMORY_LIMIT // WORKER_MEMORY)
    return str(count) if count > 1 else ""


def make_exact(device: str) -> None:
    """On a GPU: products and convolutions in float32, not in PyTorch's TF32 of 10 bits, by algorithms that repeat."""
    import torch

    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
