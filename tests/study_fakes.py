"""Cheap stand-ins for backbones, methods and metrics, and a sweep over them that can be killed.

`python tests/study_fakes.py HOME LOG SECONDS` runs the sweep; every image that is really computed
adds a line to LOG and takes SECONDS.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from qartsr_lib.base import provenance
from qartsr_lib.images.image import upscale_bicubic
from qartsr_lib.study.evaluator import Parts
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.sweep import grid, run_table

IMAGES = 3
PROFILE = get_profile("smoke", backbones=("plain",), metrics=("PSNR", "ABSENT"), max_images=IMAGES)


@dataclass
class FakeBackbone:
    """Bicubic x4 with a brightness that depends on the timestep, in `levels` grey levels."""

    timestep: int
    log: list = field(default_factory=list)
    seconds: float = 0.0
    levels: int = 255
    weights_sha256: str = "weights"
    log_file: Path | None = None

    def upscale(self, lq):
        time.sleep(self.seconds)
        self.log.append((self.timestep, self.levels))
        if self.log_file:
            with open(self.log_file, "a", encoding="utf-8") as stream:
                stream.write(f"{self.timestep} {self.levels}\n")
        bright = upscale_bicubic(lq) * (1 - self.timestep / 1e5)
        return (bright * self.levels).round() / self.levels


class FakeMethod:
    """Fewer grey levels at fewer bits, so that no two models share their images; remembers what it was given."""

    trains = False

    def __init__(self, label: str, built: list) -> None:
        self.label, self.built = label, built

    def build(self, backbone, bits, calibration_images, *, seed=0, **options):
        self.built.append((self.label, bits, seed, len(calibration_images), tuple(options.items())))
        width = int(bits.removeprefix("W").split("A")[0])
        quantized = FakeBackbone(backbone.timestep, backbone.log, backbone.seconds, 2 ** min(width, 10) - 1 + seed)
        quantized.log_file = backbone.log_file
        return SimpleNamespace(backbone=quantized, report=None, w_bits_effective=float(width), steps=0, note="")


def fake_score(sr, hr, names):
    images = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (sr, hr)]
    error = float(np.mean((images[0] - images[1]) ** 2))
    return {name: (10 * np.log10(255**2 / error), "") for name in names}


def fake_parts(log=None, built=None, loaded=None, seconds=0.0, log_file=None) -> Parts:
    log, built, loaded = (items if items is not None else [] for items in (log, built, loaded))

    def load_backbone(name, timestep, device):
        loaded.append((name, timestep))
        return FakeBackbone(timestep, log, seconds, log_file=log_file)

    return Parts(
        load_backbone=load_backbone,
        method=lambda name: FakeMethod({"fp": "FP", "maxmin": "MaxMin"}[name], built),
        available=lambda names: {name: "weights not found" if name == "ABSENT" else None for name in names},
        identity=lambda names: {name: {"version": 1} for name in names},
        score=fake_score,
    )


def sweep(**arguments):
    return run_table(grid(PROFILE, ("maxmin",)), PROFILE, parts=fake_parts(**arguments))


if __name__ == "__main__":
    os.environ["QARTSR_HOME"] = sys.argv[1]
    provenance.source_sha256 = lambda: "fixed"  # editing the library while the test runs must not matter
    sweep(log_file=Path(sys.argv[2]), seconds=float(sys.argv[3])).write("table1")
