"""`make bench`: what QArtSR's finetuning costs, as ratios measured in one run.

Same batch, dtype, threads and image loss on both sides; each ratio is the median over rounds in
which the two sides alternate. Memory is the peak of a process of its own, less what it held before.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from qartsr_lib import paths, provenance
from qartsr_lib.atomic import write_text
from qartsr_lib.backbones import load_backbone
from qartsr_lib.finetuning.engine import FinetuneConfig, Finetuner
from qartsr_lib.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.finetuning.phases import Phase, Term
from qartsr_lib.methods import METHODS

BACKBONE, TIMESTEP, BITS = "embedded-scaled", 1, "W4A4"
BATCH, CROP, ROUNDS = 4, 32, 5
RATES = tuple((kind, 1e-4) for kind in ("side", "merged", "phi", "bounds"))


def batches(count: int = 1) -> list[torch.Tensor]:
    """Random LQ batches (BATCH, 3, CROP, CROP); time and memory do not depend on the values."""
    torch.manual_seed(0)
    return [torch.rand(BATCH, 3, CROP, CROP) for _ in range(count)]


def float_step() -> Callable[[], None]:
    """Forward and backward of the unquantized network with gradients of all weights, and Adam's step."""
    teacher = load_backbone(BACKBONE, TIMESTEP)
    model = copy.deepcopy(teacher).requires_grad_(True)
    loss = IMAGE_LOSSES.get("vae-features+mse")(torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    upscaled = teacher.prepare(batches()[0])
    with torch.no_grad():
        target = teacher(upscaled)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(upscaled), target).backward()
        optimizer.step()

    return step


def finetuner(count: int = 1, cache: bool = True) -> Finetuner:
    """A QArtSR run on random batches."""
    teacher = load_backbone(BACKBONE, TIMESTEP)
    lq = batches(count)
    student = METHODS.get("qartsr").untrained(teacher, BITS, [image[None] for image in lq[0]])
    loss = IMAGE_LOSSES.get("vae-features+mse")(torch.device("cpu"))
    return Finetuner(teacher, student, lq, loss, FinetuneConfig(RATES, cache=cache), "bench")


def qartsr_step() -> Callable[[], None]:
    """One end-to-end step of QArtSR."""
    run = finetuner()
    phase = [Phase(tuple(run.network.names), BATCH, (Term("image"),))]
    return lambda: run.run(phase) and None


def reverse_schedule(cache: bool, epochs: int = 2) -> Callable[[], list[float]]:
    """RPQ over all modules on two batches, `epochs` times each, with and without cached upstream: its losses."""

    def schedule() -> list[float]:
        run = finetuner(2, cache)
        plan = METHODS.get("qartsr").phases(
            run.student, 15 * 2 * BATCH * epochs, 0, rpq=1.0, order="reverse", loss="both"
        )
        return [record["loss"] for record in run.run(plan)]

    return schedule


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median of first / second over alternating rounds, with the spread and both medians in seconds."""
    first(), second()  # warm-up
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds)]
    quotients = [a / b for a, b in pairs]
    return {
        "ratio": round(statistics.median(quotients), 3),
        "lowest": round(min(quotients), 3),
        "highest": round(max(quotients), 3),
        "seconds_first": round(statistics.median(a for a, _ in pairs), 3),
        "seconds_second": round(statistics.median(b for _, b in pairs), 3),
    }


def peak_of(kind: str) -> float:
    """MiB that steps of `kind` add to the peak of a process of its own."""
    words = [sys.executable, "-m", "qartsr_lib.bench", "--memory-of", kind]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write results/bench.json."""
    parser = argparse.ArgumentParser(prog="python -m qartsr_lib.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--memory-of", choices=["float", "qartsr"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        step = float_step() if options.memory_of == "float" else qartsr_step()
        before = provenance.peak_memory_mib()
        step(), step()
        print(provenance.peak_memory_mib() - before)
        return
    cached, plain = reverse_schedule(True), reverse_schedule(False)
    found = {
        "QArtSR step / full-precision step": ratio(qartsr_step(), float_step(), options.rounds),
        "plain RPQ / RPQ with cached upstream": ratio(plain, cached, 1)
        | {"same losses": cached() == plain(), "epochs per module": 2},
        "peak memory, MiB": {"QArtSR": round(peak_of("qartsr")), "full precision": round(peak_of("float"))},
        "setting": {"backbone": BACKBONE, "timestep": TIMESTEP, "bits": BITS, "batch": BATCH, "lq crop": CROP},
        "environment": provenance.environment("cpu"),
        "git": provenance.git_state(),
    }
    print(json.dumps(found, indent=1))
    write_text(paths.results_dir("bench").with_suffix(".json"), json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
