"""`make faults`: the fault table and the speed-up of two workers, results/faults.csv and results/faults.json.

    python -m tests.faults --tries 5 --rounds 3

Real processes on one machine, on loopback, one thread each. Every try is a new folder; the fault
comes when some images are finished and one is being computed. Counted, against a sweep in one
process, are rows of the tables that are absent or differ, and pieces of work (cache entries) that
were begun again after they had been finished. Only the full disk is a stand-in: the cache's writes
fail with ENOSPC. A try that does not end well loses all its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from qartsr_lib.base import paths, provenance
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.progress import progress
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study.evaluator import Experiment
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.sweep import grid, run_table
from tests.benchmarks.bench import summary
from tests.faults.strikes import FAULTS, compared, strike
from tests.faults.trial import Trial, loopback, sweep

PROFILE = get_profile("smoke", max_images=2, metrics=("PSNR",))
TRAIN_IMAGES = 8
#: Of the speed-up: equal and independent models, so that waiting for the last one counts little.
SPEED_BITS = ("W8A8", "W6A6", "W4A4", "W3A3")
COMMAND = (sys.executable, "-m", "tests.faults", "--sweep")


def experiments() -> list[Experiment]:
    """The smoke grid and one short training."""
    options = training_options("qartsr", "W4A4", replace(PROFILE, train_images=TRAIN_IMAGES))
    trained = Experiment(*PROFILE.finetune_models[0], "qartsr", "W4A4", "samples", options=options)
    return [*grid(PROFILE, ("maxmin",)), trained]


def fault_table(tries: int, chosen: str) -> pd.DataFrame:
    """One row per fault: fault, workers, tried, results_lost, results_changed, computed_twice."""
    faults = [fault for fault in FAULTS if chosen in fault[0]]
    if not faults:
        known = ", ".join(dict.fromkeys(name for name, _ in FAULTS))
        raise QartsrError(f"no fault is called {chosen!r}; known: {known}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="qartsr-faults-") as name:
        folder = Path(name)
        reference = Trial(folder / "reference", COMMAND)
        reference.run("")
        with loopback(folder) as cluster:
            for number, fault in enumerate(progress([fault for fault in faults for _ in range(tries)], "faults")):
                rows.append((*fault, *_tried(fault, Trial(folder / str(number), COMMAND), reference.home, cluster)))
    frame = pd.DataFrame(rows, columns=["fault", "workers", "results_lost", "results_changed", "computed_twice"])
    counted = frame.groupby(["fault", "workers"], sort=False)
    return counted.sum().assign(tried=counted.size()).reset_index()[[*frame.columns[:2], "tried", *frame.columns[2:]]]


def _tried(fault: tuple[str, str], trial: Trial, reference: Path, cluster: str) -> tuple[int, int, int]:
    try:
        return strike(fault, trial, reference, cluster)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"{fault}: {error}", file=sys.stderr)
        return (*compared(reference, Path("/nonexistent")), trial.done_twice())


def speed_up(rounds: int) -> dict[str, dict[str, float]]:
    """Time of two workers over that of one, by turns: from the start of the workers, and of a second sweep on them."""
    whole, running = {1: [], 2: []}, {1: [], 2: []}
    for _ in range(rounds):
        for count in (1, 2):
            first, second = _times(count)
            whole[count].append(first)
            running[count].append(second)
    return {
        "two workers / one worker": summary(list(zip(running[2], running[1], strict=True))),
        "with their start": summary(list(zip(whole[2], whole[1], strict=True))),
    }


def _times(count: int) -> tuple[float, float]:
    """Seconds of a sweep with the workers' start, and of the same sweep again with an empty cache."""
    from qartsr_lib.study.parallel import local

    profile = replace(PROFILE, bits=SPEED_BITS)
    models = [experiment for experiment in grid(profile, ("maxmin",)) if experiment.method != "fp"]
    with tempfile.TemporaryDirectory(prefix="qartsr-speed-") as folder:
        started = time.perf_counter()
        with local(count, threads=1) as client:
            run_table(models, profile, cache=RunCache(Path(folder, "first")), workers=client)
            first = time.perf_counter() - started
            started = time.perf_counter()
            run_table(models, profile, cache=RunCache(Path(folder, "second")), workers=client)
            return first, time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write results/faults.csv and results/faults.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n\n")[0])
    parser.add_argument("--tries", type=int, default=5, help="of every fault (default: 5); 0: the speed-up alone")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed-up (default: 3)")
    parser.add_argument("--only", default="", help="faults whose name contains this; nothing is written then")
    parser.add_argument("--sweep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--workers", default="", help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.sweep:
        sweep(experiments(), PROFILE, options.workers, options.pause)
        return 0
    path = paths.results_dir("faults")
    if options.tries:
        try:
            table = fault_table(options.tries, options.only)
        except QartsrError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(table.to_string(index=False), flush=True)
        if options.only:
            return 0
        write_text(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    found = {
        **speed_up(options.rounds),
        "setting": {"bits": SPEED_BITS, "timesteps": PROFILE.timesteps, "images": PROFILE.max_images},
        "environment": provenance.environment("cpu") | {"threads": 1, "cores": os.cpu_count()},
        "git": provenance.git_state(),
    }
    print(json.dumps(found, indent=1))
    write_text(path.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
