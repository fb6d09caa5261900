"""The ways of computing that are timed against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.deploy.packed_file import load_packed
from qartsr_lib.deploy.runtimes import RUNTIMES

Upscaler = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way of computing.

    Attributes:
        runtime: name in RUNTIMES for a packed model; None for the float network.
        dtype: of a float network.
        compiled: whether a float network goes through torch.compile.
        keeps_memory: whether its process keeps freed memory (deploy.runtimes).
    """

    runtime: str | None = None
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    keeps_memory: bool = True

    def model(self, backbone: str, timestep: int, file: Path | None) -> OneStepSR:
        """Its network: the backbone's in floating point, or the one in a packed file."""
        if self.runtime is not None:
            return RUNTIMES.get(self.runtime)(load_packed(file))
        model = load_backbone(backbone, timestep).to(self.dtype)
        # The image is enlarged in float32, whatever the network computes in.
        model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(self.dtype) for image in inputs))
        if self.compiled:
            model.compile()
        return model

    def upscaler(self, model: OneStepSR) -> Upscaler:
        """Function from a low-quality image to its upscaled one, both float32; works with what `model` gave."""
        return lambda lq: model.upscale(lq).float()


FLOAT = {
    "fp32": Contestant(keeps_memory=False),
    "fp32, memory kept": Contestant(),
    "fp32, compiled": Contestant(compiled=True),
    "bf16": Contestant(dtype=torch.bfloat16),
}
PACKED = {"simulate": Contestant("simulate"), "int8": Contestant("int8")}
CONTESTANTS = FLOAT | PACKED


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
