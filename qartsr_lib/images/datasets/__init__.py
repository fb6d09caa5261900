"""Data sets, found by name: `DATASETS.get("RealSR").pairs(data_root)` gives image pairs, all checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qartsr_lib.base.registry import Registry

if TYPE_CHECKING:
    from qartsr_lib.images.datasets.base import Dataset

#: name -> Dataset; a new data set is one file of this package that registers it.
DATASETS: Registry[Dataset] = Registry("data set", __package__)
