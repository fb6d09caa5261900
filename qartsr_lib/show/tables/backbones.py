"""Sizes, time shares and training record of the embedded backbones."""

from __future__ import annotations

import json

import pandas as pd

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.backbones.sizes import backbone_size, time_shares  # noqa: F401
from qartsr_lib.study.profiles import Profile

TRAINING_RECORD = PACKAGED_WEIGHTS / "training.json"


def backbone_sizes(settings: Profile) -> pd.DataFrame:
    """`backbone_size` of every backbone of the profile."""
    models = [load_backbone(name, settings.timesteps[0]) for name in settings.backbones]
    return pd.DataFrame([backbone_size(model) for model in models]).set_index("backbone")


def training_history() -> tuple[pd.DataFrame, float]:
    """(validation record of the shipped weights' training, bicubic PSNR-Y on the same crops).

    Columns backbone, timestep, step, loss and the qualities of `training.validation.Validation`.
    """
    record = json.loads(TRAINING_RECORD.read_text(encoding="utf-8"))
    history = pd.DataFrame(
        [
            {"backbone": run["recipe"], "timestep": run["timestep"]} | point
            for run in record["runs"]
            for point in run["history"]
        ]
    )
    return history, float(record["validation"]["bicubic"]["psnr_y_bicubic"])
