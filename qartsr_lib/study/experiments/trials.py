"""Trials on BSDS500/val: what a method reaches there with some options, so that no test set takes part in a choice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.backbones.features import pretrained_distance
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import central_crop, list_images, psnr_y, read_image
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import Options
from qartsr_lib.methods.setting import model_facts
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.training.finetuning.losses import perceptual_and_squared

#: The backbone whose UNet does its share at T = 1: the fair one for comparing methods.
BACKBONE, TIMESTEP = "embedded-scaled", 1
VALIDATION, CROP = "BSDS500/val", 128
#: Photographs of VALIDATION, in order of their names: on which settings and rates are chosen, and on which layers are.
CHOICE, LAYERS = slice(0, 12), slice(12, 20)
SCORES = ("psnr_fp", "psnr_hr", "feature_distance", "image_loss")
"""PSNR-Y to full precision's image and to the original, perceptual distance and image loss to full precision's."""


@dataclass(frozen=True)
class Trial:
    """A quantized model: what `Method.build` is given."""

    method: str
    bits: str
    options: Options = ()
    backbone: str = BACKBONE
    timestep: int = TIMESTEP


def validation_files(data_root: Path, photographs: slice) -> list[Path]:
    """Photographs of VALIDATION by number; a QartsrError where it has none of these."""
    known = list_images(data_root / VALIDATION)
    if not known[photographs]:
        numbers = f"{photographs.start + 1} to {photographs.stop} in order of their names are used here"
        raise QartsrError(f"{data_root / VALIDATION}: holds {len(known)} images, and {numbers}; put all of them there")
    return known[photographs]


def validation_pairs(data_root: Path, photographs: slice) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> (LQ, HR) of central crops, bicubic and realistic degradation by turns."""
    pairs = {}
    for seed, path in enumerate(validation_files(data_root, photographs)):
        hr = central_crop(read_image(path), CROP)
        pairs[path.stem] = degrade(hr, ("bicubic", "realistic")[seed % 2], seed), hr
    return pairs


def run_trials(trials: Mapping[Hashable, Trial], key: Sequence[str], data_root: Path, name: str) -> Measured:
    """Rows dataset, the columns `key`, image (of CHOICE), SCORES and stored_bits (per weight); NaN for a breakdown.

    Args:
        trials: values of the columns `key` -> what is built.
        name: of the measurement, for the run records.
    """
    calibration = calibration_list(get_profile("study"), data_root)
    files = validation_files(data_root, CHOICE)
    pairs, distance = validation_pairs(data_root, CHOICE), pretrained_distance("cpu")
    backbones = {cell: load_backbone(*cell) for cell in {(t.backbone, t.timestep) for t in trials.values()}}
    questions = {
        cell: {
            "parameters": {"measurement": name}
            | vars(trial)
            | {"options": dict(trial.options)}
            | model_facts(trial.method, trial.backbone, trial.options),
            "weights_sha256": backbones[trial.backbone, trial.timestep].weights_sha256,
            "calibration": {"name": calibration.name, "sha256": calibration.sha256},
            "data": {"name": VALIDATION, "crop": CROP, "sha256": [remembered_sha256(path) for path in files]},
        }
        for cell, trial in trials.items()
    }

    @torch.no_grad()
    def scores(backbone: OneStepSR, student: OneStepSR, lq: torch.Tensor, hr: torch.Tensor) -> tuple[float, ...]:
        image, target = student.upscale(lq), backbone.upscale(lq)
        apart = (distance(image, target), perceptual_and_squared(distance)(image, target))
        return psnr_y(image, target), psnr_y(image, hr), *map(float, apart)

    def measure(cell: Hashable) -> pd.DataFrame:
        trial = trials[cell]
        backbone, bits = backbones[trial.backbone, trial.timestep], np.nan
        try:
            method, options = METHODS.get(trial.method), dict(trial.options)
            built = method.build(backbone, trial.bits, calibration.images, **options)
            scored = {image: scores(backbone, built.backbone, *pair) for image, pair in pairs.items()}
            bits = built.w_bits_effective
        except Diverged as error:  # a rate at which training breaks down is a result too
            print(error, flush=True)
            scored = dict.fromkeys(pairs, (np.nan,) * len(SCORES))
        rows = [(VALIDATION, *cell, image, *values, bits) for image, values in scored.items()]
        return pd.DataFrame(rows, columns=["dataset", *key, "image", *SCORES, "stored_bits"])

    return measure_questions("study", questions, measure)
