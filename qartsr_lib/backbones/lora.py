"""LoRA (arXiv:2106.09685), W' = W + (alpha / r) B A, of linear and convolutional layers: beside the layer, or merged.

Names and shapes of tensors are those of the library PEFT, whose files OSEDiff's are; its alpha stands in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

PEFT_ALPHA = 8.0


class Adapter(NamedTuple):
    """The factors of one layer: `a` (r, in) or (r, in, k, k), `b` (out, r) or (out, r, 1, 1)."""

    a: torch.Tensor
    b: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the weight that this updates; meaningless unless `is_consistent`."""
        return torch.Size((self.b.shape[0], *self.a.shape[1:]))

    @property
    def is_consistent(self) -> bool:
        """Whether the two factors belong to one layer."""
        a, b = self
        return a.ndim == b.ndim and a.ndim in (2, 4) and a.shape[0] == b.shape[1] and b[0, 0].numel() == 1


@torch.no_grad()
def merge_(network: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Add every adapter to the weight of the layer of its name, in place; shapes must agree."""
    for name, (a, b) in adapters.items():
        weight = network.get_submodule(name).weight
        update = PEFT_ALPHA / len(a) * (b.float().flatten(1) @ a.float().flatten(1))
        weight.add_(update.view(weight.shape).to(weight))


class LoraLayer(nn.Module):
    """A layer with a low-rank branch, base(x) + (alpha / r) B(A(x)), its tensors named as PEFT names them.

    A starts normal with standard deviation 1 / r, B at zero, so that training starts from the base.

    Args:
        base: nn.Linear or nn.Conv2d (groups = 1); kept, not copied.
        adapter: name in the tensors' keys, `lora_A.<adapter>.weight`.
    """

    def __init__(self, base: nn.Module, adapter: str, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        if isinstance(base, nn.Conv2d):
            shape = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
            down = nn.Conv2d(base.in_channels, rank, base.kernel_size, **shape, bias=False)
            up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            down = nn.Linear(base.in_features, rank, bias=False)
            up = nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            down.weight.copy_(torch.randn(down.weight.shape, generator=generator) / rank)
            up.weight.zero_()
        self.base_layer, self.adapter, self.scale = base, adapter, PEFT_ALPHA / rank
        self.lora_A, self.lora_B = nn.ModuleDict({adapter: down}), nn.ModuleDict({adapter: up})
        self.to(base.weight.device)

    def forward(self, x: torch.Tensor, *ignored: object) -> torch.Tensor:
        """As the base layer; further positional arguments (diffusers passes a scale) are not used."""
        return self.base_layer(x) + self.scale * self.lora_B[self.adapter](self.lora_A[self.adapter](x))


def attach_(network: nn.Module, targets: Mapping[str, str], rank: int, seed: int = 0) -> list[LoraLayer]:
    """Give layers a low-rank branch, in place; returns them in the order of `targets`.

    Args:
        targets: full name of an nn.Linear or nn.Conv2d -> name of its adapter.
        seed: of the branches' start.
    """
    generator, layers = torch.Generator().manual_seed(seed), []
    for name, adapter in targets.items():
        layers.append(LoraLayer(network.get_submodule(name), adapter, rank, generator))
        network.set_submodule(name, layers[-1])
    return layers
