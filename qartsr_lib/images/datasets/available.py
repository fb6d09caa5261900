"""The data sets of a run that this machine has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.central import central_pairs


def available_data(
    names: Sequence[str], data_root: Path | None, max_images: int | None = None, max_side: int | None = None
) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """({data set: checked pairs}, {data set: why it is absent}); for the limits see `Profile`.

    Raises:
        QartsrError: a data set is present but broken (the file is named), or none is present.
    """
    reasons = {name: DATASETS.get(name).available(data_root) for name in dict.fromkeys(names)}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    pairs = {name: DATASETS.get(name).pairs(data_root, max_images) for name in reasons if name not in skipped}
    if not pairs:
        raise QartsrError("no data set of this run is available: " + "; ".join(f"{n}: {r}" for n, r in skipped.items()))
    return {name: central_pairs(found, max_side) for name, found in pairs.items()}, skipped
