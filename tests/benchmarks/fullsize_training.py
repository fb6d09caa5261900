"""`python -m tests.benchmarks.fullsize_training`:
what QArtSR's finetuning of a full-size OSEDiff costs, with random weights.

Time and memory do not depend on the values. Every module of RPQ gets one step and ET a few; the time of
a whole run is projected from them. Seconds and memory hold for the image size they were measured at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from qartsr_lib.backbones.base import OneStepSR, parameter_count
from qartsr_lib.base import paths, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import checked, positive, run_command
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods import METHODS
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.training.finetuning.engine import FinetuneConfig, Finetuner, Record
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.finetuning.phases import Phase, batches_of, block_groups
from tests.benchmarks import fullsize

METHOD, IMAGE_LOSS = "qartsr", "vae-features+mse"
PAPER = {"hours": 6.8, "memory_gb": 36.8, "device": "NVIDIA RTX A6000"}


def plan(model: OneStepSR, et_images: int) -> list[Phase]:
    """QArtSR's phases with one image for every module of RPQ and `et_images` for ET."""
    images = 2 * len(block_groups(model))
    phases = METHODS.get(METHOD).phases(model, images, 0, rpq=0.5, order="reverse", loss="both")
    return [*phases[:-1], replace(phases[-1], images=et_images)]


def projected_hours(phases: int, history: Sequence[Record], images: int, start: float, crops: int, drawn: int) -> float:
    """Hours of a run that spends `images`, half on RPQ's modules evenly and half on ET, batch 1.

    Args:
        phases: how many; the last is ET.
        history: of the measured run.
        start: seconds that conversion and calibration took for `crops` images; `drawn` are planned.
    """
    seconds = [[row["seconds"] for row in history if row["phase"] == number] for number in range(phases)]
    rpq = images / 2 * statistics.mean(statistics.mean(part) for part in seconds[:-1])
    return (rpq + images / 2 * statistics.mean(seconds[-1]) + start / crops * drawn) / 3600


def measure(
    bits: str, device: str, crops: int, side: int, et_images: int, configs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Calibrate and finetune; everything that is written down but the environment."""
    profile = get_profile("paper")
    samples = get_profile("tiny", n_calibration=crops, calibration_size=side)
    images = [image.to(device) for image in calibration_list(samples).images]
    teacher = fullsize.random_osediff(profile.finetune_models[-1][1], device, **(configs or {}))
    teacher.inference = replace(teacher.inference, smallest=side)
    method, started = METHODS.get(METHOD), time.perf_counter()
    student = method.untrained(teacher, bits, images)
    start = time.perf_counter() - started
    config = FinetuneConfig(method.rates, image_loss=IMAGE_LOSS, teacher=profile.teacher)
    loss = IMAGE_LOSSES.get(IMAGE_LOSS)(torch.device(device))
    run = Finetuner(teacher, student, batches_of(images, 1), loss, config, f"{METHOD} {bits}")
    phases = plan(student, et_images)
    history = run.run(phases)
    hours = projected_hours(len(phases), history, profile.train_images, start, crops, profile.n_calibration)
    return {
        "bits": bits,
        "image": [side * teacher.factor] * 2,
        "calibration_images": crops,
        "parameters": parameter_count(teacher),
        "trained_parameters": sum(p.numel() for parameters in run.parameters.values() for p in parameters),
        "seconds_start": round(start, 1),
        "seconds_per_rpq_step": [row["seconds"] for row in history if row["phase"] < len(phases) - 1],
        "seconds_per_et_step": [row["seconds"] for row in history if row["phase"] == len(phases) - 1],
        "loss_first_last": [history[0]["loss"], history[-1]["loss"]],
        "image_loss": IMAGE_LOSS,
        "teacher": profile.teacher,
        "projected": {"images": profile.train_images, "batch": 1, "hours_at_this_image_size": round(hours, 2)},
        "paper": PAPER,
        "peak_memory_gib": round(_peak_gib(device), 2),
    }


def _peak_gib(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return provenance.peak_memory_mib() / 1024


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write results/paper/qartsr_fullsize_<device>.json; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fullsize_training", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    add("--bits", default="W4A4", help="default: W4A4")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--crops", type=positive, default=2, help="calibration images (default: 2)")
    add("--side", type=int, default=128, help="of a low-quality image; 128 is the paper's (default), a CPU wants 16")
    add("--et-images", type=positive, default=2, help="images of the end-to-end part (default: 2)")
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.side < 8:
        raise QartsrError(f"--side {options.side}: choose at least 8")
    found = measure(options.bits, checked(options.device), options.crops, options.side, options.et_images)
    record = found | {"environment": provenance.environment(options.device), "git": provenance.git_state()}
    target = paths.results_dir("paper") / f"qartsr_fullsize_{torch.device(options.device).type}.json"
    write_text(target, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
