"""The measurements of notebook 03, cached and with run records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.methods import METHODS
from qartsr_lib.study.cells import Measured, measure_cells
from qartsr_lib.study.experiments import anatomy
from qartsr_lib.study.profiles import Profile


def components(
    profile: Profile,
    cell: tuple[str, int],
    layers: Sequence[str],
    calibration: CalibrationList,
    images: int,
    bits: Sequence[str],
    steps: int,
) -> Measured:
    """`anatomy.component_errors` on the first `images` crops: rows dataset, layer, bits, component, error."""
    backbone = load_backbone(*cell)
    asked = {"measurement": "anatomy, components", "layers": list(layers), "bits": list(bits), "steps": steps}
    questions = {cell: _question(backbone, cell, calibration, images, asked)}

    def measure(_: tuple[str, int]) -> pd.DataFrame:
        rows = anatomy.component_errors(backbone, layers, calibration.images[:images], bits, steps)
        rows.insert(0, "dataset", calibration.name)
        return rows

    return measure_cells(profile.name, questions, measure)


def layers(
    profile: Profile,
    cell: tuple[str, int],
    trained: Mapping[str, nn.Module],
    calibration: CalibrationList,
    images: int,
    options: Mapping[str, Sequence[tuple[str, object]]],
) -> Measured:
    """Error of every layer alone for MaxMin, Eq. (9) before training, and QArtSR, on calibration crops.

    Args:
        trained: bits -> QArtSR's result.
        options: bits -> with which it was trained.
    """
    backbone = load_backbone(*cell)
    questions = {
        bits: _question(
            backbone,
            cell,
            calibration,
            images,
            {"measurement": "anatomy, layers", "bits": bits, "options": [list(option) for option in options[bits]]},
        )
        for bits in trained
    }

    def measure(bits: str) -> pd.DataFrame:
        untrained = METHODS.get("qartsr").untrained(backbone, bits, calibration.images)
        models = {
            "MaxMin": METHODS.get("maxmin").build(backbone, bits, calibration.images).backbone,
            "Eq. (9) before training": untrained,
            "QArtSR": trained[bits],
        }
        rows = anatomy.errors_over_the_network(backbone, models, calibration.images[:images])
        rows.insert(0, "bits", bits)
        rows.insert(0, "dataset", calibration.name)
        return rows

    return measure_cells(profile.name, questions, measure)


def _question(
    backbone: nn.Module, cell: tuple[str, int], calibration: CalibrationList, images: int, asked: dict
) -> dict:
    return {
        "parameters": {"backbone": cell[0], "timestep": cell[1], **asked},
        "weights_sha256": backbone.weights_sha256,
        "calibration": {"name": calibration.name, "sha256": calibration.sha256, "images": images},
    }
