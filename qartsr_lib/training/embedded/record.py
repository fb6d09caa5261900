"""Quality on validation photographs, which every choice rests on, and training.json, how weights were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR, shortcuts
from qartsr_lib.backbones.embedded import RECIPES, weights_name
from qartsr_lib.backbones.sizes import backbone_size, time_shares
from qartsr_lib.base import provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import central_crop, psnr, psnr_y, read_image, upscale_bicubic
from qartsr_lib.training.embedded.crops import CROP
from qartsr_lib.training.embedded.loop import Schedule
from qartsr_lib.training.embedded.stages import LATENT_WEIGHT

_METRICS = {"psnr_y": psnr_y, "psnr_rgb": psnr}


class Validation:
    """Mean PSNR-Y and RGB PSNR on the central crops of some photographs, bicubic and realistic.

    A quick look while training, on unquantized tensors; published numbers come from 8-bit PNGs.

    Args:
        paths: photographs.
        size: side of the crops in HR pixels, a multiple of 16.
    """

    def __init__(self, paths: Sequence[Path], size: int = 192) -> None:
        crops = [(seed, central_crop(read_image(path), size)) for seed, path in enumerate(paths)]
        crops = [(seed, hr) for seed, hr in crops if min(hr.shape[-2:]) >= size]
        if not crops:
            raise QartsrError(f"--validation: no image is at least {size}x{size} pixels; name a folder of larger ones")
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

    def baseline(self) -> dict[str, float]:
        """The same for bicubic upscaling."""
        return self.score(upscale_bicubic)

    def score(self, upscale: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The same for any function from an LQ image to its upscaled image, both (1, 3, ., .) in [0, 1]."""
        found = {kind: _means([(upscale(lq), hr) for lq, hr in pairs]) for kind, pairs in self._pairs.items()}
        return {f"{metric}_{kind}": value for kind, means in found.items() for metric, value in means.items()}


def _means(images: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    return {name: round(sum(of(sr, hr) for sr, hr in images) / len(images), 4) for name, of in _METRICS.items()}


def contributions(model: OneStepSR, validation: Validation) -> dict[str, dict[str, float]]:
    """Validation quality of the model, with its noise set to zero, and with z_H replaced by z_L."""
    return {name: validation.score(partial(_upscale, model, to_z_h)) for name, to_z_h in shortcuts(model).items()}


@torch.no_grad()
def _upscale(model: OneStepSR, to_z_h: Callable[[torch.Tensor], torch.Tensor], lq: torch.Tensor) -> torch.Tensor:
    image = model.decode(to_z_h(model.encode(model.prepare(lq))))
    return image[..., : 4 * lq.shape[-2], : 4 * lq.shape[-1]].clamp(0, 1)


def write_record(
    folder: Path,
    images: Mapping[str, str | int],
    schedules: Mapping[str, Schedule],
    models: Sequence[OneStepSR],
    validation: Validation | None,
) -> Path:
    """Gather stage times, histories and validation quality of `folder` into training.json.

    Args:
        images: what the training photographs are, in words, and their number.
        models: the trained backbones.
    """
    stages = [path for path in sorted(folder.glob("*.json")) if path.stem != "training"]
    record = images | {
        "crop": CROP,
        "latent_weight": LATENT_WEIGHT,
        "schedules": {name: asdict(schedule) for name, schedule in schedules.items()},
        "seconds": {path.stem: json.loads(path.read_text())["seconds"] for path in stages},
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
