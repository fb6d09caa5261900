"""Processes that compile what the race will compile, while the race prepares what it need not compile.

torch.compile and Triton keep their results on disk, under the same name for the same network on the same
GPU: the race's own compilation then finds most of the work done.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from tests.benchmarks.gpu.gpu_contestants import CONTESTANTS, Models
from tests.benchmarks.gpu.gpu_race import tf32

AHEAD: dict[str, Callable[[Models], nn.Module]] = {
    "bf16, compiled": CONTESTANTS["bf16, compiled"].model,
    "int8 in float32": lambda models: models.int8_fp32,  # for the agreement
}
"""What is compiled, each in a process of its own."""


@contextlib.contextmanager
def compiling_ahead(device: str, side: int) -> Iterator[dict[str, subprocess.Popen]]:
    """Context in which the processes of AHEAD run, unless they have ended before.

    Args:
        device: a CUDA device.
        side: of the low-quality image.
    """
    command = [sys.executable, "-m", "tests.benchmarks.gpu.compile_ahead", device, str(side)]
    processes = {name: subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in AHEAD}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def waited(process: subprocess.Popen, seconds: float) -> dict[str, object]:
    """Wait for the process, at most so long, and end it: it would disturb what is timed afterwards."""
    started = time.monotonic()
    try:
        done = process.wait(max(0.0, seconds)) == 0
    except subprocess.TimeoutExpired:
        done = False
        process.kill()
        process.wait()
    return {"done": done, "seconds_waited": round(time.monotonic() - started, 1)}


def compile_once(device: str, side: int, name: str) -> None:
    """Make and call one of AHEAD; values do not matter, sizes do."""
    models = Models(device, torch.rand(1, 3, side, side))
    with torch.no_grad(), tf32(False):  # as the race has it: such settings are part of a result's name
        AHEAD[name](models)(models.fp32.prepare(models.lq))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    compile_once(sys.argv[1], int(sys.argv[2]), sys.argv[3])
