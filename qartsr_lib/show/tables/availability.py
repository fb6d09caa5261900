"""What this machine has of data and metrics, and how to get the rest."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

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
