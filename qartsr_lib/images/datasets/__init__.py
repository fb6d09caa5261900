"""Data sets: one file each, found by name.

`DATASETS.get("RealSR").pairs(data_root)` gives the image pairs, checked before anything is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qartsr_lib.base.registry import Registry

if TYPE_CHECKING:
    from qartsr_lib.images.datasets.base import Dataset

#: name -> Dataset; one file of this package registers one data set (or the variants of one).
DATASETS: Registry[Dataset] = Registry("data set", __package__)
