"""DIV2K validation pairs."""

from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.folders import FolderDataset

DATASETS.register("DIV2K_val")(
    FolderDataset(
        "DIV2K_val",
        "DIV2K validation photographs (Agustsson and Timofte, CVPRW 2017)",
        ("DIV2K_V2_val", "DIV2K_valid"),
    )
)
