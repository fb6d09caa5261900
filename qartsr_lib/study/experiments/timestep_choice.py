"""TRQ's choice: at which timestep a quantized backbone stays nearest to its full precision.

The paper chooses T by Table 1, on test sets. Here the choice is made on the calibration images, with
MaxMin as the paper does; test sets come after.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import luma, psnr
from qartsr_lib.methods import METHODS
from qartsr_lib.study.measured import Measured, measure_cells
from qartsr_lib.study.results import read_measurement

_CELL = ("dataset", "backbone", "timestep", "bits")
_COLUMNS = [*_CELL, "image", "psnr_fp"]


def measure_timesteps(
    profile: str,
    backbones: Sequence[str],
    timesteps: Sequence[int],
    bits: Sequence[str],
    calibration: CalibrationList,
) -> Measured:
    """PSNR-Y in dB between MaxMin's image and full precision's, per calibration image; cached cell by cell.

    Returns:
        Rows dataset (the calibration list's name), backbone, timestep, bits, image (its index), psnr_fp.
    """
    cells = [(name, timestep) for name in backbones for timestep in timesteps]
    found = {"name": calibration.name, "sha256": calibration.sha256}
    questions = {
        (name, timestep): {
            "parameters": {"measurement": "choice of T", "backbone": name, "timestep": timestep, "method": "maxmin"}
            | {"bits": list(bits)},
            "weights_sha256": load_backbone(name, timestep).weights_sha256,
            "calibration": found,
        }
        for name, timestep in cells
    }

    def measure(cell: tuple[str, int]) -> pd.DataFrame:
        full = load_backbone(*cell)
        quantized = {width: METHODS.get("maxmin").build(full, width, calibration.images).backbone for width in bits}
        rows = []
        with torch.inference_mode():
            for index, image in enumerate(progress(calibration.images, f"choice of T, {cell[0]} T={cell[1]}")):
                wanted = luma(full.upscale(image))
                for width, model in quantized.items():
                    rows.append((calibration.name, *cell, width, index, psnr(luma(model.upscale(image)), wanted)))
        return pd.DataFrame(rows, columns=_COLUMNS)

    return measure_cells(profile, questions, measure)


def write_choice(choice: Measured, name: str, keep: bool = False) -> pd.DataFrame:
    """Write results/<profile>/<name>.csv; returns its rows.

    Args:
        choice: from `measure_timesteps`.
        keep: rows of other models and bit widths stay: for a part of Table 4.
    """
    choice.write(name, _CELL if keep else ("dataset",))
    return read_measurement(choice.profile, name, _COLUMNS)


def timestep_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR-Y to full precision: rows (backbone, bits), one column per T, and the T with the highest mean."""
    means = measured.pivot_table(index=["backbone", "bits"], columns="timestep", values="psnr_fp", sort=False)
    means = means[sorted(means.columns, reverse=True)]
    best = means.idxmax(axis=1)
    return means.round(2).rename(columns=lambda timestep: f"T = {timestep}").assign(chosen=best)
