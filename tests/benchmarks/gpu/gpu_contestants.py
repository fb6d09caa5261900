"""What runs against what on a GPU: networks of OSEDiff's size with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import nn

from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.methods import METHODS, low_rank
from tests.benchmarks import fullsize
from tests.benchmarks.gpu.int8_cuda import int8_cuda_form

METHOD, BITS, TIMESTEP = "qartsr", "W4A4", 1


class Models:
    """The networks of a race, made when they are first asked for.

    Args:
        device: of all.
        lq: the image, (1, 3, h, w); its mirror image calibrates.
        configs: of fullsize.random_osediff.
    """

    def __init__(self, device: str, lq: torch.Tensor, configs: Mapping[str, Any] | None = None) -> None:
        self.device, self.lq, self.configs = device, lq.to(device), configs or {}

    @cached_property
    def fp32(self) -> nn.Module:
        model = fullsize.random_osediff(TIMESTEP, self.device, **self.configs)
        model.inference = replace(model.inference, smallest=min(self.lq.shape[-2:]))
        model.index = torch.tensor(model.index, device=self.device)  # a CUDA graph can copy nothing from the CPU
        return model

    @cached_property
    def bf16(self) -> nn.Module:
        return _in(self.fp32, torch.bfloat16)

    @cached_property
    def simulation(self) -> nn.Module:
        """The method's layers as training finds them, but for a quick SVD: large exact ones take minutes."""
        with mock.patch.object(low_rank, "truncated_svd", quick_svd):
            student = METHODS.get(METHOD).untrained(self.fp32, BITS, [self.lq.flip(-1)])
        return inference_form(student, half=True)

    @cached_property
    def simulation_bf16(self) -> nn.Module:
        return _in(self.simulation, torch.bfloat16)

    @cached_property
    def int8(self) -> nn.Module:
        return int8_cuda_form(self.simulation)

    @cached_property
    def int8_fp32(self) -> nn.Module:
        return int8_cuda_form(self.simulation, torch.float32)


def quick_svd(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `low_rank.truncated_svd`, nearly, by random projection."""
    left, singular, right = torch.svd_lowrank(weight.flatten(1), min(rank + 4, *weight.flatten(1).shape))
    return (left[:, :rank] * singular[:rank]).contiguous(), right[:, :rank].t().contiguous()


def _in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    model = copy.deepcopy(model).to(dtype)
    model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(dtype) for image in inputs))
    return model


def _compiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for part in (model.vae.encoder, model.unet, model.vae.decoder):
        part.compile(dynamic=False)
    return model


def _channels_first(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Contestant:
    """One way of computing.

    Attributes:
        model: gives its network.
        tf32: whether float32 products may go through TF32.
        graph: whether it takes part as a CUDA graph, too.
    """

    model: Callable[[Models], nn.Module]
    tf32: bool = False
    graph: bool = True


#: In this order they are prepared; what takes longest comes last.
CONTESTANTS = {
    "fp32": Contestant(lambda models: models.fp32, graph=False),
    "fp32, TF32": Contestant(lambda models: models.fp32, tf32=True, graph=False),
    "bf16": Contestant(lambda models: models.bf16),
    "bf16, NCHW": Contestant(lambda models: _channels_first(models.bf16)),  # PyTorch's GroupNorm is made for it
    "simulate, fp32": Contestant(lambda models: models.simulation, graph=False),
    "simulate, bf16": Contestant(lambda models: models.simulation_bf16),
    "int8": Contestant(lambda models: models.int8),
    "bf16, compiled": Contestant(lambda models: _compiled(models.bf16)),
}
