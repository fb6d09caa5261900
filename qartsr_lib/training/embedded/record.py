"""training.json: how a set of backbone weights was made and what it reaches on validation photographs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR, shortcuts
from qartsr_lib.backbones.embedded import RECIPES, weights_name
from qartsr_lib.backbones.sizes import backbone_size, time_shares
from qartsr_lib.base import provenance
from qartsr_lib.base.files import write_text
from qartsr_lib.training.embedded.loop import Schedule
from qartsr_lib.training.embedded.stages import LATENT_WEIGHT
from qartsr_lib.training.embedded.validation import Validation


def contributions(model: OneStepSR, validation: Validation) -> dict[str, dict[str, float]]:
    """Validation quality of the model, with its noise set to zero, and with z_H replaced by z_L."""
    return {name: validation.score(partial(_upscale, model, to_z_h)) for name, to_z_h in shortcuts(model).items()}


@torch.no_grad()
def _upscale(model: OneStepSR, to_z_h: Callable[[torch.Tensor], torch.Tensor], lq: torch.Tensor) -> torch.Tensor:
    image = model.decode(to_z_h(model.encode(model.prepare(lq))))
    return image[..., : 4 * lq.shape[-2], : 4 * lq.shape[-1]].clamp(0, 1)


def write_record(
    folder: Path,
    images: str,
    count: int,
    schedules: dict[str, Schedule],
    models: Sequence[OneStepSR],
    validation: Validation | None,
) -> Path:
    """Gather stage times, histories and validation quality of `folder` into training.json.

    Args:
        images: what the training photographs are, in words.
        count: how many.
        models: the trained backbones.
    """
    record = {
        "images": images,
        "image_count": count,
        "crop": 64,
        "latent_weight": LATENT_WEIGHT,
        "schedules": {name: asdict(schedule) for name, schedule in schedules.items()},
        "seconds": {
            path.stem: json.loads(path.read_text())["seconds"]
            for path in sorted(folder.glob("*.json"))
            if path.stem != "training"
        },
        "environment": provenance.environment("cpu"),
        "sizes": [backbone_size(model) for model in models if model.timestep == models[0].timestep],
        "time_shares": time_shares(models[0]).reset_index().to_dict("records"),
        "validation": _bounds(models, validation) if validation else {},
        "runs": [
            {
                "recipe": model.name,
                "timestep": model.timestep,
                "history": _history(folder / weights_name(model.name, model.timestep)),
                "contribution": contributions(model, validation) if validation else {},
            }
            for model in models
        ],
    }
    return write_text(folder / "training.json", json.dumps(record, indent=1) + "\n")


def _bounds(models: Sequence[OneStepSR], validation: Validation) -> dict[str, dict[str, float]]:
    """Bicubic upscaling, and the pretrained VAE, which a recipe with a frozen encoder holds unchanged."""
    frozen = [model for model in models if not RECIPES[model.name].trains_encoder]
    reconstruction = {"reconstruction": validation.reconstruction(frozen[0])} if frozen else {}
    return {"bicubic": validation.baseline()} | reconstruction


def _history(weights: Path) -> list[dict]:
    path = weights.with_suffix("") / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
