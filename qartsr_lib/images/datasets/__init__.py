"""Data sets, found by name: `DATASETS.get("RealSR").pairs(data_root)` gives image pairs, all checked."""

from qartsr_lib.base.registry import Registry

#: Name -> `folders.FolderDataset`, or what else has name, description, available(data_root) (None, or why it cannot be
#: used and how to get it) and pairs(data_root, max_images), in fixed order. A new one is one file of this package.
DATASETS: Registry = Registry("data set", __package__)
