"""Calibration lists: low-quality crops that ranges are fitted on, never taken from a test set."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import SCALE
from qartsr_lib.images.datasets.samples import photographs
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import list_images, random_crop, read_image, to_uint8

MULTIPLE, SEED = 16, 20250
KINDS = ("bicubic", "realistic")
#: profile.calibration -> (name in run records, folders of its photographs under DATA_ROOT; none: the samples)
CALIBRATION_LISTS = {
    "samples": ("samples-calibration", ()),
    "BSDS500": ("BSDS500/train", ("BSDS500/train", "BSDS500/data/images/train", "BSR/BSDS500/data/images/train")),
    "DIV2K_train": ("DIV2K_train", ("DIV2K_train/HR", "DIV2K_train", "DIV2K_train_HR", "DIV2K/DIV2K_train_HR")),
}


class CalibrationList(NamedTuple):
    """The crops of a run."""

    name: str  # stands in every run record
    images: list[torch.Tensor]  # low-quality crops, (1, 3, h, w) in [0, 1]
    sha256: str  # over the crops' 8-bit levels; part of every run's key


def calibration_list(profile, data_root: Path | None = None) -> CalibrationList:
    """Fixed-seed crops of a `Profile`'s list `calibration`, degraded bicubic and realistic by turns.

    Photographs are taken in one shuffled order, again and again until there are `n_calibration` crops, so a short list
    is covered evenly and a longer run extends a shorter one. Crops have `calibration_size` low-quality pixels a side
    (fewer where the photograph is smaller). A QartsrError for an unknown list or absent photographs.
    """
    if profile.calibration not in CALIBRATION_LISTS:
        raise QartsrError(f"unknown calibration list {profile.calibration!r} (known: {', '.join(CALIBRATION_LISTS)})")
    name, folders = CALIBRATION_LISTS[profile.calibration]
    files = _images_in(data_root, folders) if folders else [item.path for item in photographs("calibration")]
    order = np.random.default_rng(SEED).permutation(len(files))
    chosen = [files[order[index % len(files)]] for index in range(profile.n_calibration)]
    return _list(name, [_crop(path, index, profile.calibration_size) for index, path in enumerate(chosen)])


def _images_in(data_root: Path | None, folders: tuple[str, ...]) -> list[Path]:
    if data_root is None:
        raise QartsrError(f"calibration needs {folders[0]} under DATA_ROOT; set DATA_ROOT or use PROFILE=tiny")
    places = [Path(data_root) / folder for folder in folders]
    present = next((place for place in places if place.is_dir()), None)
    if present is None:
        raise QartsrError(f"{places[0]}: no such folder; put calibration photographs there or use PROFILE=tiny")
    return list_images(present)


def _crop(path: Path, index: int, size: int) -> torch.Tensor:
    """The `index`-th low-quality crop: position and degradation depend on the index alone."""
    image = read_image(path, profiles=False)  # rocket.jpg is in Adobe RGB; results were made with its stored numbers
    height, width = (min(size * SCALE, side // MULTIPLE * MULTIPLE) for side in image.shape[-2:])
    if not height or not width:
        raise QartsrError(f"{path}: is smaller than {MULTIPLE} pixels; remove it from the calibration folder")
    hr = random_crop(image, height, width, np.random.default_rng((SEED, index)))
    return degrade(hr, KINDS[index % len(KINDS)], seed=SEED + index)


def low_quality_crops(folder: str | Path, count: int, size: int) -> CalibrationList:
    """`count` fixed-seed crops of a user's own low-quality images, in turn in a drawn order, not degraded further.

    They are like those that will be upscaled. Crops have `size` pixels a side (fewer where an image is smaller).
    """
    files = list_images(folder)
    order = np.random.default_rng(SEED).permutation(len(files))  # names may sort by scene, or by what was done to them
    files, crops = [files[place] for place in order], []
    for index in range(count):
        image = read_image(files[index % len(files)])
        height, width = (min(size, side) for side in image.shape[-2:])
        crops.append(random_crop(image, height, width, np.random.default_rng((SEED, index))))
    return _list(Path(folder).name, crops)


def _list(name: str, images: list[torch.Tensor]) -> CalibrationList:
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(tuple(image.shape)).encode() + to_uint8(image).tobytes())
    return CalibrationList(name, images, digest.hexdigest())
