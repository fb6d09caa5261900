"""Real photographs that installed packages carry: the data set that every machine has.

`PHOTOGRAPHS` lists every photographic file in the wheels of scikit-image, scikit-learn and
matplotlib, with its split. Test photographs are cropped (real pixels, never resized) so that the
`tiny` profile's tables take minutes. Pairs are written as PNG files into the untracked cache, so
that everything downstream reads files.
"""

from __future__ import annotations

import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, check_pair, strided
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import read_image, to_uint8, write_png

#: Longest side of a test crop; sides are multiples of 16, the size that the backbones work on.
CROP, MULTIPLE = 320, 16

_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data", "sklearn/datasets/images", "matplotlib/mpl-data/sample_data"
_CC0, _PUBLIC = "CC0", "no known copyright restrictions"
_MIDDLEBURY = "none stated (Middlebury Stereo 2014)"


@dataclass(frozen=True)
class Photograph:
    """One file of an installed package.

    Attributes:
        id: name in per-image tables.
        folder: installed package and folder inside it.
        file: file name.
        licence: as the package states it.
        split: "test", "calibration" or "excluded".
        corner: left and top of the test crop.
        scene: photographs of one scene share it (a stereo pair counts as one photograph).
        remark: what it shows, or why it is excluded.
    """

    id: str
    folder: str
    file: str
    licence: str
    split: str
    remark: str
    corner: tuple[int, int] = (0, 0)
    scene: str = ""

    @property
    def path(self) -> Path:
        """The installed file.

        Raises:
            QartsrError: the package or the file is missing.
        """
        package, _, inside = self.folder.partition("/")
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / inside / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise QartsrError(
                f"{self.folder}/{self.file}: not installed; reinstall the packages (rm -r .venv, make test)"
            )
        return path


PHOTOGRAPHS = (
    Photograph("astronaut", _SKIMAGE, "astronaut.png", "public domain (NASA)", "test", "portrait", (96, 0)),
    Photograph("brick", _SKIMAGE, "brick.png", _CC0, "test", "grey texture", (96, 96)),
    Photograph("camera", _SKIMAGE, "camera.png", _CC0, "test", "grey, cameraman on grass", (128, 48)),
    Photograph("chelsea", _SKIMAGE, "chelsea.png", _CC0, "test", "cat, fur", (96, 0)),
    Photograph("china", _SKLEARN, "china.jpg", "CC BY 2.0", "test", "pagoda", (64, 0)),
    Photograph(
        "grace_hopper", _MATPLOTLIB, "grace_hopper.jpg", "public domain (US Navy)", "test", "portrait", (96, 64)
    ),
    Photograph("motorcycle", _SKIMAGE, "motorcycle_left.png", _MIDDLEBURY, "test", "machine", (240, 96), "motorcycle"),
    Photograph("coffee", _SKIMAGE, "coffee.png", _CC0, "calibration", "cup on wood"),
    Photograph("coins", _SKIMAGE, "coins.png", _PUBLIC, "calibration", "grey, Greek coins"),
    Photograph("flower", _SKLEARN, "flower.jpg", "CC BY 2.0", "calibration", "dahlia"),
    Photograph("grass", _SKIMAGE, "grass.png", _CC0, "calibration", "grey texture"),
    Photograph("gravel", _SKIMAGE, "gravel.png", _CC0, "calibration", "grey texture"),
    Photograph("rocket", _SKIMAGE, "rocket.jpg", "public domain (SpaceX)", "calibration", "launch pad at dusk"),
    Photograph(
        "motorcycle_right",
        _SKIMAGE,
        "motorcycle_right.png",
        _MIDDLEBURY,
        "excluded",
        "the other eye of motorcycle",
        scene="motorcycle",
    ),
    Photograph("clock_motion", _SKIMAGE, "clock_motion.png", _CC0, "excluded", "motion-blurred throughout"),
    Photograph("cell", _SKIMAGE, "cell.png", _CC0, "excluded", "microscopy"),
    Photograph("ihc", _SKIMAGE, "ihc.png", _PUBLIC, "excluded", "microscopy"),
    Photograph("hubble_deep_field", _SKIMAGE, "hubble_deep_field.jpg", "public domain (NASA)", "excluded", "astronomy"),
    Photograph("moon", _SKIMAGE, "moon.png", "none stated", "excluded", "astronomy"),
    Photograph("retina", _SKIMAGE, "retina.jpg", _CC0, "excluded", "medical"),
)


def photographs(split: str) -> list[Photograph]:
    """The photographs of a split, in table order."""
    return [photograph for photograph in PHOTOGRAPHS if photograph.split == split]


@dataclass(frozen=True)
class SampleDataset:
    """The test photographs under one degradation ("bicubic" or "realistic")."""

    name: str
    kind: str
    description: str

    def available(self, data_root: Path | None = None) -> str | None:
        """None, or which installed photograph is missing."""
        try:
            for photograph in photographs("test"):
                _ = photograph.path
        except QartsrError as error:
            return str(error)
        return None

    def pairs(self, data_root: Path | None = None, max_images: int | None = None) -> list[Pair]:
        """Write the pairs that are not yet in the cache (or differ there) and return them."""
        folder = paths.cache_dir() / "datasets" / self.name
        pairs = [self._materialise(photograph, folder) for photograph in strided(photographs("test"), max_images)]
        for pair in pairs:
            check_pair(pair)
        return pairs

    def _materialise(self, photograph: Photograph, folder: Path) -> Pair:
        left, top = photograph.corner
        image = read_image(photograph.path)
        hr = image[..., top : top + CROP, left : left + CROP]
        height, width = (side // MULTIPLE * MULTIPLE for side in hr.shape[-2:])
        hr = hr[..., :height, :width]
        # A seed per photograph, so that adding one leaves the others as they are.
        lq = degrade(hr, self.kind, seed=zlib.crc32(photograph.id.encode()))
        pair = Pair(photograph.id, folder / "LR" / f"{photograph.id}.png", folder / "HR" / f"{photograph.id}.png")
        for path, wanted in ((pair.lq, lq), (pair.hr, hr)):
            if not _holds(path, to_uint8(wanted)):
                write_png(path, wanted)
        return pair


def _holds(path: Path, array: np.ndarray) -> bool:
    """Whether `path` is an image with exactly these levels."""
    if not path.is_file():
        return False
    try:
        return np.array_equal(to_uint8(read_image(path)), array)
    except QartsrError:
        return False


for _dataset in (
    SampleDataset("samples", "bicubic", "photographs of installed packages, bicubic x4"),
    SampleDataset("samples-realistic", "realistic", "the same photographs, second-order degradation x4"),
):
    DATASETS.register(_dataset.name)(_dataset)
