"""GroupNorm and the SiLU that follows it as one module, for networks whose numbers lie channels last.

What follows what is known of diffusers' blocks only; elsewhere a GroupNorm is replaced on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from qartsr_lib.quant.layers import replace_layers

Normalize = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor, float, bool], torch.Tensor]


class FusedGroupNorm(nn.Module):
    """nn.GroupNorm, with SiLU behind it or without; a channels-last input is not copied, and nor is the output.

    Args:
        norm: with weight and bias, which are shared.
        normalize: triton_kernels.group_norm.group_norm, which says what it does.
        silu: whether SiLU follows.
    """

    def __init__(self, norm: nn.GroupNorm, normalize: Normalize, silu: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.normalize, self.silu = norm.num_groups, norm.eps, normalize, silu
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape, channels last in memory."""
        last = x.flatten(2).transpose(1, 2)
        y = self.normalize(last, self.groups, self.weight, self.bias, self.eps, self.silu)
        return y.transpose(1, 2).unflatten(2, x.shape[2:])


class SiluOfVectors(nn.Module):
    """SiLU of the time embedding, which a block's images went through with their GroupNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """SiLU of (N, C); an image (N, C, H, W) as it is."""
        return nn.functional.silu(x) if x.ndim == 2 else x


def fuse_norms_(model: nn.Module, normalize: Normalize) -> int:
    """Replace the affine GroupNorms of `model`, in place, and the SiLU behind them where that is known.

    Returns:
        Behind how many a SiLU went with them.
    """
    followed = set()
    for block in list(model.modules()):
        for norm, place, activation in _followers(block):
            followed.add(id(norm))
            setattr(block, place, activation)
    replace_layers(
        model,
        lambda _, layer: type(layer) is nn.GroupNorm and layer.affine,
        lambda name, _: FusedGroupNorm(model.get_submodule(name), normalize, id(model.get_submodule(name)) in followed),
    )
    return len(followed)


def _followers(block: nn.Module) -> Iterator[tuple[nn.GroupNorm, str, nn.Module]]:
    """A GroupNorm of `block` with a SiLU behind it, the attribute that holds the SiLU, and what it will hold."""
    if isinstance(block, ResnetBlock2D):
        norms = (block.norm1, block.norm2)
        # With "scale_shift" the time embedding comes between norm2 and the SiLU.
        if (
            block.time_embedding_norm in ("default", "group")
            and all(map(_plain, norms))
            and type(block.nonlinearity) is nn.SiLU
        ):
            yield from ((norm, "nonlinearity", SiluOfVectors()) for norm in norms)
    elif _plain(getattr(block, "conv_norm_out", None)) and type(getattr(block, "conv_act", None)) is nn.SiLU:
        yield block.conv_norm_out, "conv_act", nn.Identity()


def _plain(norm: object) -> bool:
    return type(norm) is nn.GroupNorm and norm.affine
