"""`python -m tests.benchmarks.fullsize_deployment`: a full-size OSEDiff on a GPU, in floating point and in integers.

Weights are random: time and memory do not depend on the values. Timed is the network, from the enlarged
image to the output, on a GPU that waits; reading and enlarging the image are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qartsr_lib.base import paths, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import checked, run_command
from qartsr_lib.study.experiments.deployment import tensor_bytes
from tests.benchmarks import fullsize
from tests.benchmarks.gpu import gpu_race
from tests.benchmarks.gpu.agreement import grey_levels, layers_apart
from tests.benchmarks.gpu.compile_ahead import compiling_ahead, waited
from tests.benchmarks.gpu.gpu_contestants import BITS, CONTESTANTS, METHOD, TIMESTEP, Models

RECORD = "deployment_gpu.json"
REFERENCES = ("fp32", "bf16", "bf16, NCHW", "bf16, compiled")
REFERENCES += tuple(f"{name}, graph" for name in REFERENCES[1:])
RESERVE = 25.0
"""Seconds that are kept for the rounds when something is being compiled."""
LOADING = 45.0
"""Seconds that the compiled contestant is given after what was compiled ahead of it."""
WRITING = 3.0
"""Seconds at the end for the record."""


def _attempt(
    record: dict[str, Any],
    name: str,
    work: Callable[[], Any],
    deadline: gpu_race.Deadline,
    reserve: float = RESERVE,
) -> None:
    """record[name] = work(), or why not, in all but the last `reserve` seconds; no failure here ends the rest."""
    started = time.monotonic()
    try:
        with deadline.within(reserve):
            record[name] = work()
    except Exception as error:  # the record says it
        record[name] = {"failed": gpu_race.reason(error)}
    print(f"{name}: {time.monotonic() - started:.1f} s {record[name] if 'failed' in record[name] else ''}", flush=True)


def enter(name: str, models: Models, image: torch.Tensor, calls: dict[str, gpu_race.Call]) -> dict[str, Any]:
    """Prepare a contestant, put its calls into `calls`; sizes, memory, and why it has no graph if it has none."""
    contestant = CONTESTANTS[name]

    def call() -> torch.Tensor:
        with torch.no_grad(), gpu_race.tf32(contestant.tf32):
            return model(image)

    model = contestant.model(models)
    found = {"seconds_first_call": round(gpu_race.warmed_up(call), 2), "weights_mib": _mib(tensor_bytes(model))}
    found["peak_mib"] = round(found["weights_mib"] + gpu_race.peak_mib(call), 1)
    calls[name] = call
    if contestant.graph:
        try:
            calls[f"{name}, graph"] = gpu_race.graphed(call)
        except Exception as error:  # times without a graph stand
            found["graph"] = gpu_race.reason(error)
    return found


def agreement(models: Models, image: torch.Tensor) -> dict[str, Any]:
    """Images of the integer runtime against the simulation, with rounding of other kinds beside it."""
    with torch.no_grad():
        wanted, exact = models.simulation(image), models.fp32(image)
        pairs = {
            "int8 against simulate, fp32": (models.int8, wanted),
            "int8 in float32 against simulate, fp32": (models.int8_fp32, wanted),
            "simulate, bf16 against simulate, fp32": (models.simulation_bf16, wanted),
            "bf16 against fp32": (models.bf16, exact),
        }
        return {name: grey_levels(model(image), other) for name, (model, other) in pairs.items()}


def measure(
    models: Models,
    rounds: int,
    deadline: gpu_race.Deadline,
    keep: Callable[[dict], None],
    ahead: Mapping[str, subprocess.Popen] | None = None,
) -> dict[str, Any]:
    """Everything that is written down but the environment; `keep` is given what there is after every stage.

    Args:
        ahead: the processes of compiling_ahead. The first rounds do not wait for them; the others do.
    """
    record: dict[str, Any] = {"contestants": {}, "agreement": {}, "breakdown": {}}
    calls: dict[str, gpu_race.Call] = {}
    image = models.fp32.prepare(models.lq)
    record["output"] = list(image.shape[-2:])

    def prepare(names: Iterable[str]) -> None:
        for name in names:
            _attempt(record["contestants"], name, lambda name=name: enter(name, models, image, calls), deadline)
            keep(record)

    def break_down(names: Iterable[str]) -> None:
        for name in names:
            if name in calls:
                _attempt(record["breakdown"], name, lambda name=name: gpu_race.breakdown(calls[name]), deadline)

    compiled = [name for name in CONTESTANTS if "compiled" in name]
    prepare(name for name in CONTESTANTS if name not in compiled)
    found, failed = gpu_race.by_turns(calls, 3, deadline)
    record |= {"first_rounds_ms": _summary(found), "failed": failed}
    break_down(("bf16", "bf16, NCHW", "int8"))
    keep(record)
    record["compiled_ahead"] = {
        name: waited(process, deadline.left() - RESERVE - LOADING) for name, process in (ahead or {}).items()
    }
    prepare(compiled)
    break_down(compiled)
    found, failed = gpu_race.by_turns(calls, rounds, deadline)
    record["failed"] |= failed
    record["ms"] = _summary(found)
    record["times_as_fast_as"] = {
        reference: {name: gpu_race.ratio(found[reference], own) for name, own in found.items()}
        for reference in REFERENCES
        if reference in found
    }
    keep(record)
    # Last, because the comparison in float32 compiles kernels that are of no use otherwise.
    for what, work in (
        ("layers", lambda: layers_apart(models.simulation, models.int8_fp32, image)),
        ("images", lambda: agreement(models, image)),
    ):
        _attempt(record["agreement"], what, work, deadline, WRITING)
        keep(record)
    return record


def _summary(found: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": round(statistics.median(times), 3),
            "lowest": round(min(times), 3),
            "highest": round(max(times), 3),
            "rounds": len(times),
        }
        for name, times in found.items()
        if times
    }


def _mib(size: int) -> float:
    return round(size / 2**20, 1)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fullsize_deployment", description=__doc__.split(": ", 1)[1]
    )
    add = parser.add_argument
    add("--device", default="cuda", help="default: cuda")
    add("--side", type=int, default=fullsize.SIDE, help="of the low-quality image (default: 128)")
    add("--image", type=Path, help="photograph to take the crop from (default: a packaged sample)")
    add("--rounds", type=int, default=10, help="default: 10")
    add("--limit", type=float, default=240, help="seconds for everything; what does not fit is left out (default: 240)")
    add("--record", type=Path, metavar="FILE.json", help=f"the record (default: results/paper/{RECORD})")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    deadline = gpu_race.Deadline(options.limit)
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        raise QartsrError(f"--device {options.device}: no CUDA device here; fullsize measures a CPU")
    checked(options.device)
    if options.side < 8 or options.side % 8 or options.rounds < 1:
        raise QartsrError("--side: choose a multiple of 8; --rounds: at least 1")
    name, lq = fullsize.photograph(options.image, options.side)
    torch.set_float32_matmul_precision("highest")
    with gpu_race.tf32(False):
        head = {
            "what": f"OSEDiff with random weights, {METHOD} {BITS} untrained, network only, batch 1",
            "image": name,
            "input": list(lq.shape[-2:]),
            "timestep": TIMESTEP,
            "environment": provenance.environment(options.device),
            "git": provenance.git_state(),
        }
        target = options.record or paths.results_dir("paper") / RECORD

        def keep(record: Mapping[str, Any]) -> None:
            write_text(target, json.dumps(head | dict(record), indent=1) + "\n")

        with compiling_ahead(options.device, options.side) as ahead:
            record = measure(Models(options.device, lq), options.rounds, deadline, keep, ahead)
    print(json.dumps(head | record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
