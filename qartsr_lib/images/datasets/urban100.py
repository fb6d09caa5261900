"""Urban100: buildings, bicubic LR."""

from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.folders import FolderDataset

DATASETS.register("Urban100")(
    FolderDataset("Urban100", "photographs of buildings, bicubic x4 (Huang et al., CVPR 2015)", ("Urban100_SR",))
)
