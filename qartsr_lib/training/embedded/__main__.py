"""`python -m qartsr_lib.training`: train the embedded backbones from a folder of images."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
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
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically, write_text
from qartsr_lib.base.machine import checked, positive
from qartsr_lib.images.image import list_images
from qartsr_lib.training.embedded.crops import Crops
from qartsr_lib.training.embedded.loop import Schedule
from qartsr_lib.training.embedded.record import write_record
from qartsr_lib.training.embedded.stages import train_one_step, train_prior, train_vae, train_warm_up
from qartsr_lib.training.embedded.validation import Validation

CROP = 64
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


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        Trainer(options).run()
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Trainer:
    """Runs the stages in order; a stage whose weights are in the output folder is not run again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.device: str = checked(options.device)
        self.timesteps: tuple[int, ...] = tuple(options.timesteps)
        self.recipes: tuple[str, ...] = tuple(options.recipes)
        self.schedules = {
            name: replace(schedule, steps=max(1, round(schedule.steps * options.steps_scale)), seed=options.seed)
            for name, schedule in SCHEDULES.items()
        }
        self.photographs = _photographs(options.images)
        self.described = options.describe or (
            options.images.name if options.images else "installed samples, generated images"
        )
        self.crops = Crops(self.photographs, CROP)
        self.validation = Validation(list_images(options.validation)[:24]) if options.validation else None

    def run(self) -> None:
        if self.validation:
            print("bicubic on the validation crops:", self.validation.baseline(), flush=True)
        vae = self._stage("vae", self._vae)
        prior = self._stage("prior", lambda: self._prior(vae))
        for recipe in self.recipes:
            start = prior
            if RECIPES[recipe].scaled:
                start = self._stage("warm-up", lambda: self._warm_up(vae, prior))
            for timestep in self.timesteps:
                name = weights_name(recipe, timestep).removesuffix(".safetensors")
                self._stage(name, partial(self._recipe, recipe, timestep, vae, start))
        models = [load_embedded(recipe, timestep, self.out) for recipe in self.recipes for timestep in self.timesteps]
        write_record(self.out, self.described, len(self.photographs), self.schedules, models, self.validation)

    def _stage(self, name: str, make) -> dict[str, torch.Tensor]:
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

    def _vae(self) -> dict[str, torch.Tensor]:
        vae = train_vae(self.crops, self.schedules["vae"], self.out / "vae", self.device)
        return vae.state_dict() | {"scaling_factor": torch.tensor(vae.config.scaling_factor)}

    def _prior(self, vae_state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return train_prior(
            _vae(vae_state).to(self.device), self.crops, self.schedules["prior"], self.out / "prior"
        ).state_dict()

    def _warm_up(self, vae_state: dict[str, torch.Tensor], prior: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        schedule, folder = self.schedules["warm-up"], self.out / "warm-up"
        unet = train_warm_up(
            _vae(vae_state).to(self.device), _unet(prior), PAPER_TIMESTEPS, self.crops, schedule, folder
        )
        return unet.state_dict()

    def _recipe(self, recipe: str, timestep: int, vae_state: dict, start: dict) -> dict[str, torch.Tensor]:
        kind = RECIPES[recipe]
        model = OneStepSR(recipe, timestep, _vae(vae_state), _unet(start), build_prompt_embedding(), scaled=kind.scaled)
        model.to(self.device, memory_format=torch.channels_last)
        folder = self.out / f"{recipe}-T{timestep:04d}"
        schedule = self.schedules.get(folder.name, self.schedules[recipe])
        train_one_step(model, self.crops, schedule, folder, self.validation, kind.trains_encoder)
        trained = ("unet.", "vae.encoder.", "vae.quant_conv.") if kind.trains_encoder else ("unet.",)
        return {key: value for key, value in model.state_dict().items() if key.startswith(trained)}


def _vae(state: dict[str, torch.Tensor]):
    state = copy.copy(state)
    vae = build_vae(float(state.pop("scaling_factor")))
    vae.load_state_dict(state)
    return vae.to(memory_format=torch.channels_last)


def _unet(state: dict[str, torch.Tensor]):
    unet = build_unet()
    unet.load_state_dict(state)
    return unet.to(memory_format=torch.channels_last)


def _photographs(folder: Path | None) -> list[Path]:
    if folder is not None:
        return list_images(folder)
    from qartsr_lib.training.embedded.fallback import fallback_images

    return fallback_images()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qartsr_lib.training", description=__doc__)
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of training photographs (default: the installed samples and generated images)",
    )
    parser.add_argument("--describe", help="what the images are, for the record (default: the folder's name)")
    parser.add_argument("--validation", type=Path, help="folder of photographs to watch the quality on while training")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for weights, checkpoints and histories; a second run continues there",
    )
    parser.add_argument("--recipes", nargs="+", default=list(SHIPPED_RECIPES), choices=list(RECIPES))
    parser.add_argument(
        "--timesteps", nargs="+", type=int, default=list(PAPER_TIMESTEPS), help="timestep labels, 1..1000"
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiply every stage's number of steps")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
