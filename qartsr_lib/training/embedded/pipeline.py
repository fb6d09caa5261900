"""All stages of training, one after the other; one whose weights are in the output folder is not run again."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qartsr_lib.backbones.embedded import RECIPES, SHIPPED_RECIPES, load_embedded, weights_name
from qartsr_lib.backbones.schedule import PAPER_TIMESTEPS
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically, write_text
from qartsr_lib.base.machine import checked
from qartsr_lib.images.image import list_images
from qartsr_lib.training.embedded.crops import Crops
from qartsr_lib.training.embedded.loop import Schedule
from qartsr_lib.training.embedded.record import Validation, write_record
from qartsr_lib.training.embedded.stages import State, train_prior, train_recipe, train_vae, train_warm_up

#: Chosen on BSDS500/val (DEVIATIONS.md); notebook 00 shows the learning curves.
SCHEDULES = {
    "vae": Schedule(steps=6000, learning_rate=1.5e-3, batch_size=8),
    "prior": Schedule(steps=600, learning_rate=1e-3),
    "warm-up": Schedule(steps=2000, learning_rate=1e-3, batch_size=8),
    "embedded": Schedule(steps=2000, learning_rate=1.2e-3, batch_size=8),
    # Twice the steps: at T = 1000 Eq. (6) multiplies every error by 14.6, and quality has to match the other T's.
    "embedded-T1000": Schedule(steps=4000, learning_rate=1.2e-3, batch_size=8),
    "embedded-scaled": Schedule(steps=600, learning_rate=6e-4, batch_size=8),
    "embedded-frozen": Schedule(steps=2000, learning_rate=1.2e-3, batch_size=8),
}


def train_all(options: argparse.Namespace) -> None:
    """Run the stages that `options` (see `command`) ask for, and write training.json."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device, out = checked(options.device), options.out
    recipes, timesteps = options.recipes or SHIPPED_RECIPES, options.timesteps or PAPER_TIMESTEPS
    for recipe in recipes:
        if recipe not in RECIPES:
            raise QartsrError(f"--recipes {recipe}: choose from {', '.join(RECIPES)}")
    schedules = {
        name: replace(schedule, steps=max(1, round(schedule.steps * options.steps_scale)), seed=options.seed)
        for name, schedule in SCHEDULES.items()
    }
    photographs = list_images(options.images)
    crops = Crops(photographs)
    validation = Validation(list_images(options.validation)[:24]) if options.validation else None
    if validation:
        print("bicubic on the validation crops:", validation.baseline(), flush=True)

    def stage(name: str, train: Callable[..., State], schedule: Schedule | None = None) -> State:
        return _stage(out, name, lambda: train(crops, schedule or schedules[name], out / name, device))

    vae = stage("vae", train_vae)
    prior = stage("prior", partial(train_prior, vae))
    for recipe in recipes:
        start = stage("warm-up", partial(train_warm_up, vae, prior)) if RECIPES[recipe].scaled else prior
        for timestep in timesteps:
            name = weights_name(recipe, timestep).removesuffix(".safetensors")
            train = partial(train_recipe, recipe, timestep, vae, start, validation)
            stage(name, train, schedules.get(name, schedules[recipe]))
    models = [load_embedded(recipe, timestep, out) for recipe in recipes for timestep in timesteps]
    images = {"images": options.describe or options.images.name, "image_count": len(photographs)}
    write_record(out, images, schedules, models, validation)


def _stage(out: Path, name: str, make: Callable[[], State]) -> State:
    """Weights of a stage as float32 tensors rounded to float16, made by `make` unless they exist."""
    path = out / f"{name}.safetensors"
    if not path.exists():
        started = time.monotonic()
        state = {key: value.detach().half().cpu().contiguous() for key, value in make().items()}
        write_atomically(path, lambda temporary: save_file(state, temporary))
        seconds = round(time.monotonic() - started, 1)
        write_text(out / f"{name}.json", json.dumps({"stage": name, "seconds": seconds}) + "\n")
        print(f"{name}: {seconds:.0f} s", flush=True)
    return {key: value.float() for key, value in load_file(path).items()}
