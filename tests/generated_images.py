"""Images that look a little like photographs, for tests of training: the same on every machine."""

from __future__ import annotations

import numpy as np
import torch

from qartsr_lib.images.image import from_uint8, resize_bicubic

SIDE = 256


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
