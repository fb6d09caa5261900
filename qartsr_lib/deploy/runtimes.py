"""How a packed model computes, and large images in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.deploy.blocks import fuse_
from qartsr_lib.deploy.int8 import int8_form
from qartsr_lib.deploy.int8_cuda import int8_cuda_form
from qartsr_lib.errors import QartsrError
from qartsr_lib.registry import Registry
from qartsr_lib.tiling import blended

#: Name -> function from a packed model to one that upscales in that way.
RUNTIMES: Registry[Callable[[OneStepSR], OneStepSR]] = Registry("runtime", "qartsr_lib.deploy")

TILE = 256
"""Side of tiles in low-quality pixels: 1024 x 1024 pixels of output, about 1 GB."""


@RUNTIMES.register("simulate")
def simulate(model: OneStepSR) -> OneStepSR:
    """Floating-point products of dequantized numbers, on any device."""
    return model


@RUNTIMES.register("int8")
def int8(model: OneStepSR) -> OneStepSR:
    """Integer products, on a CPU or, where the model lies on one, an NVIDIA GPU.

    Raises:
        QartsrError: see int8_form and int8_cuda_form.
    """
    if model.prompt_embedding.is_cuda:
        return int8_cuda_form(model)
    converted = int8_form(model)
    fuse_(converted)
    return converted


def upscale_in_tiles(model: OneStepSR, lq: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """`model.upscale`, tile by tile where a side is longer than `tile`; overlaps of an eighth are blended.

    Every tile is normalized by its own statistics (GroupNorm), a whole image by its own.

    Args:
        lq: (1, 3, h, w) in [0, 1].
        tile: side in low-quality pixels, at least 32.

    Returns:
        (1, 3, 4h, 4w) in [0, 1].

    Raises:
        QartsrError: a tile smaller than 32.
    """
    if tile < 32:
        raise QartsrError(f"--tile {tile}: choose at least 32 low-quality pixels, such as {TILE} (the default)")
    return blended(model.upscale, lq, tile, tile // 8, Fraction(model.factor)).clamp(0, 1)
