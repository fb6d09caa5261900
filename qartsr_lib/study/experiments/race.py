"""Latencies of several contestants in one run, taken by turns."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from qartsr_lib.base.errors import QartsrError


def race(
    contestants: Sequence[str], backbone: str, timestep: int, file: Path | None, lq: torch.Tensor, rounds: int
) -> dict[str, dict[str, object]]:
    """Let every contestant upscale one image `rounds` times, each in a process of its own, one after the other.

    Args:
        contestants: names in CONTESTANTS.
        file: the packed model of those that need one.
        lq: (1, 3, h, w) in [0, 1].

    Returns:
        Contestant -> {"seconds": one per round, "peak_mb": what an image and the model take at most, or None}.

    Raises:
        QartsrError: a process ended early; its last line is told.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        image = Path(folder) / "image.pt"
        torch.save(lq.clone(), image)
        found, processes = {}, {}
        for name in contestants:  # one at a time, so that none is disturbed in measuring its memory
            words = [sys.executable, "-m", "qartsr_lib.study.experiments.worker", name, "--backbone", backbone]
            words += ["--timestep", str(timestep), "--image", str(image), "--threads", str(torch.get_num_threads())]
            words += [] if file is None else ["--file", str(file)]
            processes[name] = stack.enter_context(_process(words, Path(folder) / f"{len(found)}.log"))
            found[name] = json.loads(_answer(processes[name], name)) | {"seconds": []}
        for _ in range(rounds):
            for name, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                found[name]["seconds"].append(float(_answer(process, name)))
    return found


def against(others: Sequence[float], seconds: Sequence[float]) -> float:
    """Median over rounds of the others' time divided by this one's: above 1 is faster."""
    return statistics.median(other / own for other, own in zip(others, seconds, strict=True))


@contextlib.contextmanager
def _process(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen]:
    with log.open("w", encoding="utf-8") as errors:
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        process.log = log
        try:
            yield process
        finally:
            process.stdin.close()
            process.terminate()
            process.wait()


def _answer(process: subprocess.Popen, name: str) -> str:
    line = process.stdout.readline()
    if not line:
        lines = process.log.read_text(encoding="utf-8").strip().splitlines()
        raise QartsrError(f"timing of {name} ended early: {lines[-1] if lines else 'no message'}")
    return line
