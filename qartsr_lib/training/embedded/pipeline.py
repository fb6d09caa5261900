"""All stages of training, one after the other; quality on validation photographs; training.json on how it was done."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qartsr_lib.backbones.base import OneStepSR, shortcuts
from qartsr_lib.backbones.embedded import RECIPES, SHIPPED_RECIPES, load_embedded, weights_name
from qartsr_lib.backbones.schedule import PAPER_TIMESTEPS, timestep_index
from qartsr_lib.backbones.sizes import backbone_size, time_shares
from qartsr_lib.base import provenance
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import check_writable, remembered_sha256, write_atomically, write_text
from qartsr_lib.base.machine import checked
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import central_crop, list_images, psnr, psnr_y, read_image, upscale_bicubic
from qartsr_lib.training.embedded import stages
from qartsr_lib.training.embedded.loop import CROP, Crops, Schedule
from qartsr_lib.training.states import check_begun, tell_left_out

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
BEGUN = "begun.json"
_METRICS = {"psnr_y": psnr_y, "psnr_rgb": psnr}


def train_all(options: argparse.Namespace) -> None:
    """Run the stages that `options` (see `training.command.embedded`) ask for, and write training.json.

    A stage whose weights are in the output folder is not run again. A QartsrError where they were begun by other
    options or photographs.
    """
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
    for timestep in timesteps:
        timestep_index(timestep)
    photographs = list_images(options.images)
    asked = {"--steps-scale": options.steps_scale, "--seed": options.seed, "images": _contents(photographs)}
    _check_begun(out, asked)
    crops = Crops(photographs)
    validation = Validation(list_images(options.validation)[:24]) if options.validation else None
    write_text(out / BEGUN, json.dumps(asked) + "\n")  # now that nothing is wrong with what was asked for
    if validation:
        print("bicubic on the validation crops:", validation.score(upscale_bicubic), flush=True)

    def stage(name: str, train: Callable[..., stages.State], schedule: Schedule | None = None) -> stages.State:
        return _stage(out, name, lambda: train(crops, schedule or schedules[name], out / name, device))

    vae = stage("vae", stages.train_vae)
    prior = stage("prior", partial(stages.train_prior, vae))
    for recipe in recipes:
        start = stage("warm-up", partial(stages.train_warm_up, vae, prior)) if RECIPES[recipe].scaled else prior
        for timestep in timesteps:
            name = weights_name(recipe, timestep).removesuffix(".safetensors")
            train = partial(stages.train_recipe, recipe, timestep, vae, start, validation)
            stage(name, train, schedules.get(name, schedules[recipe]))
    models = [load_embedded(recipe, timestep, out) for recipe in recipes for timestep in timesteps]
    record = {
        "images": options.describe or options.images.name,
        "image_count": crops.count,
        "crop": CROP,
        "latent_weight": stages.LATENT_WEIGHT,
        "schedules": {name: asdict(schedule) for name, schedule in schedules.items()},
    }
    write_text(out / "training.json", json.dumps(record | _found(out, models, validation), indent=1) + "\n")


def _contents(photographs: Sequence[Path]) -> str:
    return stable_hash([remembered_sha256(path) for path in photographs])


def _check_begun(out: Path, asked: Mapping[str, object]) -> None:
    """A QartsrError where `out` cannot be written, notes that something else decided its weights, or is damaged."""
    check_writable(out, f"--out {out}")
    path = out / BEGUN
    if path.exists():
        try:
            check_begun(path, json.loads(path.read_text(encoding="utf-8")), asked, "name another --out")
        except (ValueError, LookupError, TypeError) as error:
            raise QartsrError(f"{path}: damaged, or of another version; name another --out") from error


def _stage(out: Path, name: str, make: Callable[[], stages.State]) -> stages.State:
    """Weights of a stage as float32 tensors rounded to float16, made by `make` unless they exist."""
    path = out / f"{name}.safetensors"
    if not path.exists():
        started = time.monotonic()
        state = {key: value.detach().half().cpu().contiguous() for key, value in make().items()}
        write_atomically(path, lambda temporary: save_file(state, temporary))
        seconds = round(time.monotonic() - started, 1)
        write_text(out / f"{name}.json", json.dumps({"stage": name, "seconds": seconds}) + "\n")
        print(f"{name}: {seconds:.0f} s", flush=True)
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except SafetensorError as error:
        raise QartsrError(f"{path}: damaged; remove it, and the same command makes it again") from error


class Validation:
    """Mean PSNR-Y and RGB PSNR on the central crops of some photographs, bicubic and realistic.

    A quick look while training, on unquantized tensors; published numbers come from 8-bit PNGs. `size` is the side of
    the crops in HR pixels, a multiple of 16.
    """

    def __init__(self, paths: Sequence[Path], size: int = 192) -> None:
        crops = [(seed, central_crop(read_image(path), size)) for seed, path in enumerate(paths)]
        crops = [(seed, hr) for seed, hr in crops if min(hr.shape[-2:]) >= size]
        if not crops:
            raise QartsrError(f"--validation: no image is at least {size}x{size} pixels; name a folder of larger ones")
        tell_left_out(len(paths), len(crops), size, "--validation: ")
        kinds = ("bicubic", "realistic")
        self._pairs = {kind: [(degrade(hr, kind, seed), hr) for seed, hr in crops] for kind in kinds}

    def __call__(self, model: OneStepSR) -> dict[str, float]:
        """Quality of `model` under the names psnr_y_bicubic, psnr_rgb_bicubic, psnr_y_realistic, ..."""
        device = next(model.parameters()).device
        return self.score(lambda lq: model.upscale(lq.to(device)).cpu())

    @torch.no_grad()
    def reconstruction(self, model: OneStepSR) -> dict[str, float]:
        """psnr_y and psnr_rgb of the HR crops themselves after encoder and decoder: what bounds the upscaling."""
        return _means([(model.decode(model.encode(hr)).clamp(0, 1), hr) for _, hr in self._pairs["bicubic"]])

    @torch.no_grad()
    def contributions(self, model: OneStepSR) -> dict[str, dict[str, float]]:
        """Quality of the model, with its noise set to zero, and with z_H replaced by z_L."""

        def upscale(to_z_h: Callable[[torch.Tensor], torch.Tensor], lq: torch.Tensor) -> torch.Tensor:
            image = model.decode(to_z_h(model.encode(model.prepare(lq))))
            return image[..., : 4 * lq.shape[-2], : 4 * lq.shape[-1]].clamp(0, 1)

        return {name: self.score(partial(upscale, to_z_h)) for name, to_z_h in shortcuts(model).items()}

    def score(self, upscale: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Quality of any function from an LQ image to its upscaled image, both (1, 3, ., .) in [0, 1]."""
        found = {kind: _means([(upscale(lq), hr) for lq, hr in pairs]) for kind, pairs in self._pairs.items()}
        return {f"{metric}_{kind}": value for kind, means in found.items() for metric, value in means.items()}


def _means(images: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    return {name: round(sum(of(sr, hr) for sr, hr in images) / len(images), 4) for name, of in _METRICS.items()}


def _found(folder: Path, models: Sequence[OneStepSR], validation: Validation | None) -> Mapping[str, object]:
    """Of training.json: times, histories and validation quality of what was trained in `folder`."""
    bounds = {"bicubic": validation.score(upscale_bicubic)} if validation else {}
    frozen = [model for model in models if not RECIPES[model.name].trains_encoder]
    if validation and frozen:  # which hold the pretrained VAE unchanged
        bounds["reconstruction"] = validation.reconstruction(frozen[0])
    return {
        "seconds": _seconds(folder),
        "environment": provenance.environment("cpu"),
        "sizes": [backbone_size(model) for model in models if model.timestep == models[0].timestep],
        "time_shares": time_shares(models[0]).reset_index().to_dict("records"),
        "validation": bounds,
        "runs": [
            {
                "recipe": model.name,
                "timestep": model.timestep,
                "history": _history(folder / weights_name(model.name, model.timestep)),
                "contribution": validation.contributions(model) if validation else {},
            }
            for model in models
        ],
    }


def _seconds(folder: Path) -> dict[str, float]:
    """How long each stage in `folder` took; whatever else lies there is none."""
    notes = [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".safetensors").is_file()]
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in notes}


def _history(weights: Path) -> list[dict]:
    path = weights.with_suffix("") / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
