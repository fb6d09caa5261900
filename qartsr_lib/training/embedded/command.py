"""Train the embedded backbones from a folder of images."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.backbones.embedded import (
    RECIPES,
    SHIPPED_RECIPES,
    build_prompt_embedding,
    build_unet,
    build_vae,
    load_embedded,
    weights_name,
)
from qartsr_lib.backbones.schedule import PAPER_TIMESTEPS
from qartsr_lib.base.atomic import write_atomically, write_text
from qartsr_lib.base.devices import checked
from qartsr_lib.base.options import positive
from qartsr_lib.images.image import list_images
from qartsr_lib.training.embedded.crops import Crops
from qartsr_lib.training.embedded.loop import Schedule
from qartsr_lib.training.embedded.record import Validation, write_record
from qartsr_lib.training.embedded.stages import train_one_step, train_prior, train_vae, train_warm_up

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
State = Mapping[str, torch.Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of training photographs")
    add("--describe", help="what the images are, for the record (default: the folder's name)")
    add("--validation", type=Path, help="folder of photographs to watch the quality on while training")
    add("--out", type=Path, required=True, help="folder for weights and histories; a second run continues there")
    add("--recipes", nargs="+", default=list(SHIPPED_RECIPES), choices=list(RECIPES))
    add("--timesteps", nargs="+", type=int, default=list(PAPER_TIMESTEPS), help="timestep labels, 1..1000")
    add("--steps-scale", type=float, default=1.0, help="multiply every stage's number of steps")
    add("--device", default="cpu", help="cpu, or cuda for a GPU")
    add("--seed", type=int, default=0)
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")


def run(options: argparse.Namespace) -> int:
    """Run all stages in order and write training.json; returns 0."""
    if options.threads:
        torch.set_num_threads(options.threads)
    trainer, recipes, timesteps = _Trainer(options), options.recipes, options.timesteps
    if trainer.validation:
        print("bicubic on the validation crops:", trainer.validation.baseline(), flush=True)
    vae = trainer.stage("vae", trainer.vae)
    prior = trainer.stage("prior", partial(trainer.prior, vae))
    for recipe in recipes:
        start = prior
        if RECIPES[recipe].scaled:
            start = trainer.stage("warm-up", partial(trainer.warm_up, vae, prior))
        for timestep in timesteps:
            name = weights_name(recipe, timestep).removesuffix(".safetensors")
            trainer.stage(name, partial(trainer.recipe, recipe, timestep, vae, start))
    models = [load_embedded(recipe, timestep, options.out) for recipe in recipes for timestep in timesteps]
    images = {"images": options.describe or options.images.name, "image_count": len(trainer.photographs)}
    write_record(options.out, images, trainer.schedules, models, trainer.validation)
    return 0


class _Trainer:
    """The stages; one whose weights are in the output folder is not run again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.device = checked(options.device)
        self.schedules = {
            name: replace(schedule, steps=max(1, round(schedule.steps * options.steps_scale)), seed=options.seed)
            for name, schedule in SCHEDULES.items()
        }
        self.photographs = list_images(options.images)
        self.crops = Crops(self.photographs)
        self.validation = Validation(list_images(options.validation)[:24]) if options.validation else None

    def stage(self, name: str, make: Callable[[], State]) -> State:
        """Weights of a stage as float32 tensors rounded to float16, made by `make` unless they exist."""
        path = self.out / f"{name}.safetensors"
        if not path.exists():
            started = time.monotonic()
            state = {key: value.detach().half().cpu().contiguous() for key, value in make().items()}
            write_atomically(path, lambda temporary: save_file(state, temporary))
            seconds = round(time.monotonic() - started, 1)
            write_text(self.out / f"{name}.json", json.dumps({"stage": name, "seconds": seconds}) + "\n")
            print(f"{name}: {seconds:.0f} s", flush=True)
        return {key: value.float() for key, value in load_file(path).items()}

    def vae(self) -> State:
        vae = train_vae(self.crops, self.schedules["vae"], self.out / "vae", self.device)
        return vae.state_dict() | {"scaling_factor": torch.tensor(vae.config.scaling_factor)}

    def prior(self, vae: State) -> State:
        network = build_vae(vae).to(self.device)
        return train_prior(network, self.crops, self.schedules["prior"], self.out / "prior").state_dict()

    def warm_up(self, vae: State, prior: State) -> State:
        networks = build_vae(vae).to(self.device), build_unet(prior)
        how = self.crops, self.schedules["warm-up"], self.out / "warm-up"
        return train_warm_up(*networks, PAPER_TIMESTEPS, *how).state_dict()

    def recipe(self, recipe: str, timestep: int, vae: State, start: State) -> State:
        kind, folder = RECIPES[recipe], self.out / f"{recipe}-T{timestep:04d}"
        parts = build_vae(vae), build_unet(start), build_prompt_embedding()
        model = OneStepSR(recipe, timestep, *parts, scaled=kind.scaled)
        model.to(self.device, memory_format=torch.channels_last)
        schedule = self.schedules.get(folder.name, self.schedules[recipe])
        train_one_step(model, self.crops, schedule, folder, self.validation, kind.trains_encoder)
        trained = ("unet.", "vae.encoder.", "vae.quant_conv.") if kind.trains_encoder else ("unet.",)
        return {key: value for key, value in model.state_dict().items() if key.startswith(trained)}
