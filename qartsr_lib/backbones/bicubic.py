"""Bicubic upscaling behind the backbone interface, so that the baseline is measured by the same code."""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.backbones.base import BACKBONES
from qartsr_lib.images.image import upscale_bicubic


class Bicubic(nn.Module):
    """x4 bicubic interpolation: no weights, no stages, nothing to quantize; the timestep has no meaning."""

    factor = 4
    eight_bit_layers: tuple[str, ...] = ()
    weights_sha256 = "none"
    scaled = False
    colour_fix = "none"

    def __init__(self, timestep: int = 1) -> None:
        super().__init__()
        self.name, self.timestep = "bicubic", timestep

    @torch.no_grad()
    def upscale(self, lq: torch.Tensor) -> torch.Tensor:
        """(1, 3, h, w) in [0, 1] -> (1, 3, 4h, 4w) in [0, 1]."""
        return upscale_bicubic(lq, self.factor)


BACKBONES.register("bicubic")(Bicubic)
