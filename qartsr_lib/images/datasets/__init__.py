"""Data sets, found by name: `DATASETS.get("RealSR").pairs(data_root)` gives image pairs, all checked."""

from qartsr_lib.base.registry import Registry

#: name -> `base.Dataset`; a new data set is one file of this package that registers it.
DATASETS: Registry = Registry("data set", __package__)
