"""Low-rank adapters (LoRA, arXiv:2106.09685) of linear and convolutional layers: beside the layer, or merged into it.

W' = W + (alpha / r) B A. Names and shapes of tensors are those of the PEFT library, whose files
OSEDiff's are; its default alpha of 8 is never stored in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

PEFT_ALPHA = 8.0


@dataclass(frozen=True)
class Adapter:
    """The two factors of one layer's update.

    Attributes:
        a: (r, in) of a linear layer, (r, in, k, k) of a convolution.
        b: (out, r), or (out, r, 1, 1).
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Of the weight that this updates; meaningless unless `is_consistent`."""
        return torch.Size((self.b.shape[0], *self.a.shape[1:]))

    @property
    def is_consistent(self) -> bool:
        """Whether the two factors belong to one layer."""
        a, b = self.a, self.b
        return a.ndim == b.ndim and a.ndim in (2, 4) and a.shape[0] == b.shape[1] and b[0, 0].numel() == 1

    def update(self, alpha: float = PEFT_ALPHA) -> torch.Tensor:
        """(alpha / r) B A in float32, of the weight's shape."""
        product = self.b.float().flatten(1) @ self.a.float().flatten(1)
        return (alpha / self.rank * product).view(self.shape)


@torch.no_grad()
def merge_(network: nn.Module, adapters: Mapping[str, Adapter], alpha: float = PEFT_ALPHA) -> None:
    """Add every adapter to the weight of the layer of its name, in place; shapes must agree."""
    for name, adapter in adapters.items():
        weight = network.get_submodule(name).weight
        weight.add_(adapter.update(alpha).to(weight))


class LoraLayer(nn.Module):
    """A linear or convolutional layer with a low-rank branch: base(x) + (alpha / r) B(A(x)).

    Its tensors are named as PEFT names them: `base_layer.weight`, `lora_A.<adapter>.weight`, ...
    A starts normal with standard deviation 1 / r, B at zero, so that training starts from the base.

    Args:
        base: nn.Linear or nn.Conv2d (groups = 1); kept, not copied.
        adapter: name in the tensors' keys.
        rank: r.
        generator: of A's start.
        alpha: scale, see the module.
    """

    def __init__(
        self, base: nn.Module, adapter: str, rank: int, generator: torch.Generator, alpha: float = PEFT_ALPHA
    ) -> None:
        super().__init__()
        down, up = _BRANCHES[type(base)](base, rank)
        with torch.no_grad():
            down.weight.copy_(torch.randn(down.weight.shape, generator=generator) / rank)
            up.weight.zero_()
        self.base_layer, self.adapter, self.scale = base, adapter, alpha / rank
        self.lora_A, self.lora_B = nn.ModuleDict({adapter: down}), nn.ModuleDict({adapter: up})
        self.to(base.weight.device)

    def forward(self, x: torch.Tensor, *ignored: object) -> torch.Tensor:
        """As the base layer; further positional arguments (diffusers passes a scale) are not used."""
        return self.base_layer(x) + self.scale * self.lora_B[self.adapter](self.lora_A[self.adapter](x))


def _linear_branch(base: nn.Linear, rank: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)


def _convolution_branch(base: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    shape = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation, "bias": False}
    down = nn.Conv2d(base.in_channels, rank, base.kernel_size, **shape)
    return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)


_BRANCHES = {nn.Linear: _linear_branch, nn.Conv2d: _convolution_branch}


def attach_(network: nn.Module, targets: Mapping[str, str], rank: int, seed: int = 0) -> list[LoraLayer]:
    """Give layers of `network` a low-rank branch, in place.

    Args:
        targets: full name of an nn.Linear or nn.Conv2d -> name of its adapter.
        rank: r of all of them.
        seed: of the branches' start.

    Returns:
        The new layers, in the order of `targets`.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for name, adapter in targets.items():
        parent_name, _, key = name.rpartition(".")
        parent = network.get_submodule(parent_name)
        layer = LoraLayer(getattr(parent, key), adapter, rank, generator)
        # nn.Sequential and nn.ModuleList know their children by number, as strings
        parent._modules[key] = layer
        layers.append(layer)
    return layers
