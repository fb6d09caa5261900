"""DRealSR: real-camera pairs of five further cameras."""

from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.folders import FolderDataset

DATASETS.register("DRealSR")(
    FolderDataset("DRealSR", "real-camera pairs of five cameras (Wei et al., ECCV 2020)", ("DrealSRVal_crop128",))
)
