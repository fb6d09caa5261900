"""RealSR: real-camera pairs."""

from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.folders import FolderDataset

DATASETS.register("RealSR")(
    FolderDataset(
        "RealSR",
        "100 real-camera pairs, 128x128 to 512x512, as published with OSEDiff (arXiv:2406.08177)",
        ("RealSRVal_crop128", "RealSR(V3)"),
    )
)
