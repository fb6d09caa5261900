"""What a timestep does, image by image; notebook 04's choice of T, which the paper makes by Table 1, on test sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.progress import progress
from qartsr_lib.base.registry import outside
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import luma, psnr
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import Options
from qartsr_lib.methods.setting import measured_layers
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.results import KEYS, read_measurement

_CELL = tuple(column for column in KEYS if column != "method")
_COLUMNS = [*_CELL, "image", "psnr_fp"]
Cell = tuple[str, int]


def measure_by_image(
    profile: str,
    parameters: Mapping[str, object],
    cells: Sequence[Cell],
    dataset: str,
    images: Sequence[Any],
    rows: Callable[[OneStepSR, Any, dict[str, OneStepSR]], list[dict]],
    calibration: CalibrationList,
    facts: Mapping[str, object],
    setting: Options = (),
) -> Measured:
    """`rows`(full precision, image, bits -> MaxMin) of every cell (backbone, T) and image, under `dataset`.

    Args:
        parameters: of the measurement, "measurement" and any "bits" among them.
        facts: what else determines the rows, beside the weights.
        setting: of MaxMin; `parameters` have to name it.
    """
    questions = {
        (name, timestep): {
            "parameters": {"backbone": name, "timestep": timestep, **parameters},
            "weights_sha256": load_backbone(name, timestep).weights_sha256,
            **facts,
            **outside(name),
        }
        for name, timestep in cells
    }

    def measure(cell: Cell) -> pd.DataFrame:
        full, found, build = load_backbone(*cell), [], METHODS.get("maxmin").build
        widths = parameters.get("bits", ())
        models = {bits: build(full, bits, calibration.images, **dict(setting)).backbone for bits in widths}
        with torch.no_grad():
            for image in progress(images, f"{parameters['measurement']}, {cell[0]} T={cell[1]}"):
                found += rows(full, image, models)
        same = {"dataset": dataset, "backbone": cell[0], "timestep": cell[1]}
        return pd.DataFrame([same | row for row in found])

    return measure_questions(profile, questions, measure)


def measure_timesteps(
    profile: str,
    backbones: Sequence[str],
    timesteps: Sequence[int],
    bits: Sequence[str],
    calibration: CalibrationList,
    setting: Options = (),
) -> Measured:
    """PSNR-Y in dB between MaxMin's image and full precision's, per calibration image; cached cell by cell.

    Rows dataset (the calibration list's name), backbone, timestep, bits, image (its index), psnr_fp. `setting`: of
    `methods.setting.Setting` by name, what differs from its defaults.
    """

    def rows(full: OneStepSR, numbered: tuple[int, torch.Tensor], models: dict[str, OneStepSR]) -> list[dict]:
        index, image = numbered
        wanted, found = luma(full.upscale(image)), {bits: luma(model.upscale(image)) for bits, model in models.items()}
        return [{"bits": bits, "image": index, "psnr_fp": psnr(y, wanted)} for bits, y in found.items()]

    cells, images = list(product(backbones, timesteps)), list(enumerate(calibration.images))
    asked = {"measurement": "choice of T", "method": "maxmin", "bits": list(bits)}
    asked |= {"setting": [list(option) for option in setting]} if setting else {}
    for name in backbones:
        asked |= {f"{name}: {what}": layers for what, layers in measured_layers(setting, name).items()}
    facts = {"calibration": {"name": calibration.name, "sha256": calibration.sha256}}
    return measure_by_image(profile, asked, cells, calibration.name, images, rows, calibration, facts, setting)


def write_choice(choice: Measured, name: str, keep: bool = False) -> pd.DataFrame:
    """Write `measure_timesteps` as results/<profile>/<name>.csv; returns its rows.

    With `keep` the rows of other models and bit widths stay: for a part of Table 4.
    """
    choice.write(name, by=_CELL if keep else ("dataset",))
    return read_measurement(choice.profile, name, _COLUMNS)


def timestep_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR-Y to full precision: rows (backbone, bits), one column per T, and the T with the highest mean."""
    means = measured.pivot_table(index=["backbone", "bits"], columns="timestep", values="psnr_fp", sort=False)
    means = means[sorted(means.columns, reverse=True)]
    best = means.idxmax(axis=1)
    return means.round(2).rename(columns=lambda timestep: f"T = {timestep}").assign(chosen=best)
