"""`make bench`: what QArtSR's finetuning costs, as ratios measured in one run.

Same batch, dtype, threads and image loss on both sides; each ratio is the median over rounds in
which the two sides alternate. Building the two sides is not timed. Memory is what the steps add to
the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base import paths, provenance
from qartsr_lib.base.files import write_text
from qartsr_lib.methods import METHODS
from qartsr_lib.training.finetuning.engine import FinetuneConfig, Finetuner
from qartsr_lib.training.finetuning.flows import Flows, Room
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.finetuning.phases import Phase, Term, block_groups

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


class PlainLoop(Finetuner):
    """All of both networks at every step, as a loop without a cache runs."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.room = Room(0)

    def entering(self, part, targets) -> Flows:
        return Flows(self.network, [part.entry], self.room)


def finetuner(count: int = 1, kind: type[Finetuner] = Finetuner) -> Finetuner:
    """A QArtSR run on random batches."""
    teacher = load_backbone(BACKBONE, TIMESTEP)
    lq = batches(count)
    student = METHODS.get("qartsr").untrained(teacher, BITS, [image[None] for image in lq[0]])
    loss = IMAGE_LOSSES.get("vae-features+mse")(torch.device("cpu"))
    return kind(teacher, student, lq, loss, FinetuneConfig(RATES), "bench")


def qartsr_step() -> Callable[[], None]:
    """One end-to-end step of QArtSR."""
    run = finetuner()
    records = run.steps([Phase(tuple(run.network.names), 10_000 * BATCH, (Term("image"),))])
    return lambda: next(records) and None


def reverse_schedule(kind: type[Finetuner], epochs: int = 2) -> tuple[float, list[float]]:
    """RPQ over all modules on two batches, `epochs` times each: (seconds without the building, its losses)."""
    run = finetuner(2, kind)
    images = len(block_groups(run.student)) * 2 * BATCH * epochs
    plan = METHODS.get("qartsr").phases(run.student, images, 0, rpq=1.0, order="reverse", loss="both")
    started = time.perf_counter()
    history = run.run(plan)
    return time.perf_counter() - started, [record["loss"] for record in history]


def schedule_ratio(rounds: int) -> dict[str, object]:
    """The plain loop against cached upstream, by turns."""
    kinds = PlainLoop, Finetuner
    plain, cached = zip(*(tuple(map(reverse_schedule, kinds)) for _ in range(rounds)), strict=True)
    pairs = [(one[0], other[0]) for one, other in zip(plain, cached, strict=True)]
    return summary(pairs) | {"same losses": plain[0][1] == cached[0][1], "epochs per module": 2}


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, float]:
    """Times of first / second over alternating rounds, after a warm-up."""
    first(), second()
    return summary([(seconds(first), seconds(second)) for _ in range(rounds)])


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median of first / second over pairs of seconds, with the spread and both medians."""
    quotients = [first / second for first, second in pairs]
    return {
        "ratio": round(statistics.median(quotients), 3),
        "lowest": round(min(quotients), 3),
        "highest": round(max(quotients), 3),
        "seconds_first": round(statistics.median(first for first, _ in pairs), 3),
        "seconds_second": round(statistics.median(second for _, second in pairs), 3),
    }


def peak_of(kind: str) -> float:
    """MiB that steps of `kind` add to the peak of a process of its own, in which both sides were built."""
    words = [sys.executable, "-m", "tests.benchmarks.bench", "--memory-of", kind]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write results/bench.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--memory-of", choices=["float", "qartsr"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        steps = {"float": float_step(), "qartsr": qartsr_step()}
        before = provenance.peak_memory_mib()
        for _ in range(3):
            steps[options.memory_of]()
        print(provenance.peak_memory_mib() - before)
        return
    memory = {"QArtSR": round(peak_of("qartsr")), "full precision": round(peak_of("float"))}
    found = {
        "QArtSR step / full-precision step": ratio(qartsr_step(), float_step(), options.rounds),
        "plain RPQ / RPQ with cached upstream": schedule_ratio(max(1, options.rounds // 3)),
        "peak memory of steps, MiB": memory | {"ratio": round(memory["QArtSR"] / memory["full precision"], 3)},
        "setting": {"backbone": BACKBONE, "timestep": TIMESTEP, "bits": BITS, "batch": BATCH, "lq crop": CROP},
        "environment": provenance.environment("cpu"),
        "git": provenance.git_state(),
    }
    print(json.dumps(found, indent=1))
    write_text(paths.results_dir("bench").with_suffix(".json"), json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
