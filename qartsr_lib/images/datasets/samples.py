"""Real photographs that installed packages carry: the data set that every machine has.

`PHOTOGRAPHS` lists every photographic file in the wheels of scikit-image, scikit-learn and matplotlib, with its split.
Test photographs are cropped (real pixels, never resized) so that the `tiny` profile's tables take minutes. Pairs are
written as PNG files into the untracked cache, so that everything downstream reads files.
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


@dataclass(frozen=True)
class Photograph:
    """One file of an installed package.

    Attributes:
        id: name in per-image tables.
        file: installed package, folder inside it and file name.
        licence: as the package states it.
        split: "test", "calibration" or "excluded".
        remark: what it shows, or why it is excluded.
        corner: left and top of the test crop.
        scene: photographs of one scene share it (a stereo pair counts as one photograph).
    """

    id: str
    file: str
    licence: str
    split: str
    remark: str
    corner: tuple[int, int] = (0, 0)
    scene: str = ""

    @property
    def path(self) -> Path:
        """The installed file; a QartsrError where it or its package is missing."""
        package, _, inside = self.file.partition("/")
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / inside if spec and spec.origin else None
        if path is None or not path.is_file():
            raise QartsrError(f"{self.file}: not installed; reinstall the packages (rm -r .venv, make test)")
        return path


_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data/", "sklearn/datasets/images/", "matplotlib/mpl-data/sample_data/"
_CC0, _CC_BY, _FREE, _NONE = "CC0", "CC BY 2.0", "no known copyright restrictions", "none stated"
_NASA, _SPACEX, _NAVY = (f"public domain ({owner})" for owner in ("NASA", "SpaceX", "US Navy"))
_STEREO = f"{_NONE} (Middlebury Stereo 2014)"

PHOTOGRAPHS = tuple(
    Photograph(name, f"{folder}{file}", *rest)
    for name, folder, file, *rest in (
        ("astronaut", _SKIMAGE, "astronaut.png", _NASA, "test", "portrait", (96, 0)),
        ("brick", _SKIMAGE, "brick.png", _CC0, "test", "grey texture", (96, 96)),
        ("camera", _SKIMAGE, "camera.png", _CC0, "test", "grey, cameraman on grass", (128, 48)),
        ("chelsea", _SKIMAGE, "chelsea.png", _CC0, "test", "cat, fur", (96, 0)),
        ("china", _SKLEARN, "china.jpg", _CC_BY, "test", "pagoda", (64, 0)),
        ("grace_hopper", _MATPLOTLIB, "grace_hopper.jpg", _NAVY, "test", "portrait", (96, 64)),
        ("motorcycle", _SKIMAGE, "motorcycle_left.png", _STEREO, "test", "machine", (240, 96), "motorcycle"),
        ("coffee", _SKIMAGE, "coffee.png", _CC0, "calibration", "cup on wood"),
        ("coins", _SKIMAGE, "coins.png", _FREE, "calibration", "grey, Greek coins"),
        ("flower", _SKLEARN, "flower.jpg", _CC_BY, "calibration", "dahlia"),
        ("grass", _SKIMAGE, "grass.png", _CC0, "calibration", "grey texture"),
        ("gravel", _SKIMAGE, "gravel.png", _CC0, "calibration", "grey texture"),
        ("rocket", _SKIMAGE, "rocket.jpg", _SPACEX, "calibration", "launch pad at dusk"),
        ("motorcycle_right", _SKIMAGE, "motorcycle_right.png", _STEREO, "excluded", "other eye", (0, 0), "motorcycle"),
        ("clock_motion", _SKIMAGE, "clock_motion.png", _CC0, "excluded", "motion-blurred throughout"),
        ("cell", _SKIMAGE, "cell.png", _CC0, "excluded", "microscopy"),
        ("ihc", _SKIMAGE, "ihc.png", _FREE, "excluded", "microscopy"),
        ("hubble_deep_field", _SKIMAGE, "hubble_deep_field.jpg", _NASA, "excluded", "astronomy"),
        ("moon", _SKIMAGE, "moon.png", _NONE, "excluded", "astronomy"),
        ("retina", _SKIMAGE, "retina.jpg", _CC0, "excluded", "medical"),
    )
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
        pairs = [self._materialise(photograph) for photograph in strided(photographs("test"), max_images)]
        for pair in pairs:
            check_pair(pair)
        return pairs

    def _materialise(self, photograph: Photograph) -> Pair:
        left, top = photograph.corner
        hr = read_image(photograph.path)[..., top : top + CROP, left : left + CROP]
        height, width = (side // MULTIPLE * MULTIPLE for side in hr.shape[-2:])
        hr = hr[..., :height, :width]
        # A seed per photograph, so that adding one leaves the others as they are.
        lq = degrade(hr, self.kind, seed=zlib.crc32(photograph.id.encode()))
        folder = paths.cache_dir() / "datasets" / self.name
        pair = Pair(photograph.id, folder / "LR" / f"{photograph.id}.png", folder / "HR" / f"{photograph.id}.png")
        for path, wanted in ((pair.lq, lq), (pair.hr, hr)):
            if not _holds(path, to_uint8(wanted)):
                write_png(path, wanted)
        return pair


def _holds(path: Path, array: np.ndarray) -> bool:
    """Whether `path` is an image with exactly these levels."""
    try:
        return np.array_equal(to_uint8(read_image(path)), array)
    except QartsrError:
        return False


for _dataset in (
    SampleDataset("samples", "bicubic", "photographs of installed packages, bicubic x4"),
    SampleDataset("samples-realistic", "realistic", "the same photographs, second-order degradation x4"),
):
    DATASETS.register(_dataset.name)(_dataset)
