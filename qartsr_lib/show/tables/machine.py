"""What this machine has of data, metrics and backbones, and how the backbones were trained."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.backbones.sizes import backbone_size, time_shares  # noqa: F401
from qartsr_lib.images import metrics
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.study.evaluator import default_parts
from qartsr_lib.study.profiles import Profile


def dataset_availability(profile: Profile, data_root: Path | None) -> pd.DataFrame:
    """One row per data set of the profile: images found, or the reason why not."""
    rows = []
    for name in profile.datasets:
        dataset = DATASETS.get(name)
        reason = dataset.available(data_root)
        images = "" if reason else str(len(dataset.pairs(data_root, profile.max_images)))
        rows.append((name, dataset.description, images, reason or "available"))
    return pd.DataFrame(rows, columns=["data set", "what it is", "images", "state"]).set_index("data set")


def metric_availability(profile: Profile) -> pd.DataFrame:
    """One row per metric of the profile: available, or what is missing."""
    reasons = default_parts(profile).available(profile.metrics)  # offline where the profile's tables are
    rows = [(name, metrics.METRICS.get(name).description, reasons[name] or "available") for name in profile.metrics]
    return pd.DataFrame(rows, columns=["metric", "what it is", "state"]).set_index("metric")


def backbone_sizes(settings: Profile) -> pd.DataFrame:
    """`backbone_size` of every backbone of the profile."""
    models = [load_backbone(name, settings.timesteps[0]) for name in settings.backbones]
    return pd.DataFrame([backbone_size(model) for model in models]).set_index("backbone")


def training_history() -> tuple[pd.DataFrame, float]:
    """(validation record of the shipped weights' training, bicubic PSNR-Y on the same crops).

    Columns backbone, timestep, step, loss and the qualities of `training.embedded.pipeline.Validation`.
    """
    record = json.loads((PACKAGED_WEIGHTS / "training.json").read_text(encoding="utf-8"))
    points = pd.json_normalize(record["runs"], "history", ["recipe", "timestep"]).rename(columns={"recipe": "backbone"})
    return points, float(record["validation"]["bicubic"]["psnr_y_bicubic"])
