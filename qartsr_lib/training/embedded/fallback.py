"""Training images for a bare machine: the sample photographs of the calibration list and generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qartsr_lib.base import paths
from qartsr_lib.images.datasets.samples import photographs
from qartsr_lib.images.image import from_uint8, resize_bicubic, write_png

GENERATED, SIDE = 60, 256


def fallback_images() -> list[Path]:
    """Paths of the calibration photographs (never the test ones) and of 60 generated images.

    The generated ones are drawn once into the untracked cache, the same on every machine.
    """
    folder = paths.cache_dir() / "generated"
    generated = [folder / f"{index:03d}.png" for index in range(GENERATED)]
    for index, path in enumerate(generated):
        if not path.exists():
            write_png(path, generated_image(index))
    return [photograph.path for photograph in photographs("calibration")] + generated


def generated_image(index: int) -> torch.Tensor:
    """Coloured bars, disks and gratings over a smooth background: (1, 3, 256, 256) in [0, 1].

    Drawn at twice the size and shrunk, so that edges are as soft as a lens makes them.
    """
    rng = np.random.default_rng(index)
    side = 2 * SIDE
    y, x = np.mgrid[0:side, 0:side] / side
    canvas = np.stack([rng.uniform() + rng.normal(0, 0.3) * x + rng.normal(0, 0.3) * y for _ in range(3)], axis=-1)
    for _ in range(rng.integers(10, 30)):
        angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 60), rng.uniform(0, 2 * np.pi)
        along = x * np.cos(angle) + y * np.sin(angle)
        centre_x, centre_y, radius = rng.uniform(0, 1, 2).tolist() + [rng.uniform(0.03, 0.25)]
        region = [
            np.hypot(x - centre_x, y - centre_y) < radius,
            (abs(x - centre_x) < radius) & (abs(y - centre_y) < rng.uniform(0.02, 0.25)),
            abs(along - rng.uniform(-0.4, 1.2)) < rng.uniform(0.002, 0.03),
        ][rng.integers(3)]
        grating = np.sin(2 * np.pi * frequency * along + phase)[..., None] * rng.uniform(0, 0.3)
        canvas = np.where(region[..., None], rng.uniform(0, 1, 3) + grating, canvas)
    image = from_uint8((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    return resize_bicubic(image, SIDE, SIDE)
