"""The sweep of test_workers.py as a process: cheap stand-ins, one of which trains in phases."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

from study_fakes import PROFILE, FakeBackbone, fake_parts

from qartsr_lib.base.files import write_text
from qartsr_lib.study.evaluator import Experiment, Parts
from qartsr_lib.study.sweep import grid
from tests.faults.trial import sweep

PHASES, PHASE_SECONDS = 4, 0.3
TRAINED = Experiment("plain", 1, "lsq", "W4A4", "samples")
EXPERIMENTS = [*grid(PROFILE, ("maxmin",)), TRAINED]


class PhasedMethod:
    """A training whose checkpoint holds the number of finished phases; each adds "phase process" to HOME/phases."""

    label, trains = "LSQ", True

    def build(self, backbone, bits, images, *, checkpoint, **_):
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for phase in range(done, PHASES):
            time.sleep(PHASE_SECONDS)
            write_text(checkpoint, str(phase + 1))
            with open(checkpoint.parents[4] / "phases", "a", encoding="utf-8") as stream:
                stream.write(f"{phase} {os.getpid()}\n")
        model = FakeBackbone(backbone.timestep, levels=30)
        return SimpleNamespace(backbone=model, report=None, w_bits_effective=4.0, steps=0, note="")


def parts() -> Parts:
    """Those of study_fakes and the training."""
    fakes = fake_parts()
    return replace(fakes, method=lambda name: PhasedMethod() if name == "lsq" else fakes.method(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default="")
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    sweep(EXPERIMENTS, PROFILE, options.workers, options.pause, parts())
    if not options.workers and "distributed" in sys.modules:
        sys.exit("a plain run has imported Dask")
