"""Integer layers together with what surrounds them in diffusers' networks, so that fewer passes touch an image.

A GroupNorm and SiLU before a layer happen while its input is quantized; the moments that the norm needs come from the
layer before where that is known, and what a residual block adds goes in where its last layer is finished. The numbers
are the simulation's up to rounding in float32.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from qartsr_lib.deploy.around_product import Norm
from qartsr_lib.deploy.int8 import IntegerLayer
from qartsr_lib.quant.layers import replace_layers

_ENDS = ("conv_norm_out", "conv_act", "conv_out")
#: Parent -> its GroupNorm, activation (or None) and the layer behind them.
SEQUENCES = dict.fromkeys((Encoder, Decoder, UNet2DConditionModel), _ENDS)
SEQUENCES[Transformer2DModel] = ("norm", None, "proj_in")


def fuse_(model: nn.Module) -> None:
    """Put the fused forms in the place of blocks and layers, in place; what does not fit stays."""
    replace_layers(model, lambda _, block: _is_plain_block(block), lambda _, block: ResidualBlock(block))
    replace_layers(model, lambda _, block: _is_plain_upsampling(block), lambda _, block: Enlarging(block))
    for parent in list(model.modules()):
        if type(parent) not in SEQUENCES:
            continue
        names = SEQUENCES[type(parent)]
        norm, activation, layer = (name and getattr(parent, name, None) for name in names)
        if _is_norm(norm) and isinstance(activation, nn.SiLU | None) and _is_convolution(layer):
            setattr(parent, names[2], NormedLayer(norm, activation is not None, layer))
            for name in filter(None, names[:2]):
                setattr(parent, name, nn.Identity())


def _is_convolution(layer: nn.Module | None) -> bool:
    return isinstance(layer, IntegerLayer) and layer.is_convolution


def _is_norm(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.GroupNorm) and layer.weight is not None


def _is_plain_block(block: nn.Module) -> bool:
    if not isinstance(block, ResnetBlock2D):
        return False
    embedding = block.time_embedding_norm
    adds = embedding == "default" or (block.time_emb_proj is None and embedding != "scale_shift")
    plain = adds and block.upsample is None and block.downsample is None and block.output_scale_factor == 1
    parts = map(_is_norm, (block.norm1, block.norm2)), map(_is_convolution, (block.conv1, block.conv2))
    return plain and isinstance(block.nonlinearity, nn.SiLU) and all(map(all, parts))


def _is_plain_upsampling(block: nn.Module) -> bool:
    if not isinstance(block, Upsample2D):
        return False
    plain = block.norm is None and not block.use_conv_transpose and block.interpolate and block.use_conv
    return plain and block.name == "conv" and _is_convolution(block.conv)


class Enlarging(nn.Module):
    """Twice the size by nearest neighbours, then a convolution: quantized before there are four times as many."""

    def __init__(self, block: Upsample2D) -> None:
        super().__init__()
        self.conv = block.conv

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        """As diffusers' block."""
        return self.conv(x, size=tuple(output_size or [2 * side for side in x.shape[-2:]]))


class NormedLayer(nn.Module):
    """GroupNorm, SiLU or nothing, and a convolution."""

    def __init__(self, norm: nn.GroupNorm, silu: bool, layer: IntegerLayer) -> None:
        super().__init__()
        self.norm, self.silu, self.layer = norm, silu, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution's output; x is the norm's input."""
        return self.layer(x, Norm.of(self.norm, self.silu, x), moments=False)


class ResidualBlock(nn.Module):
    """A ResnetBlock2D without up- or downsampling; its parts keep their names."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        for name in ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"):
            setattr(self, name, getattr(block, name))
        self.skip_time_act, self.adds = block.skip_time_act, block.time_embedding_norm == "default"

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """As diffusers' block."""
        if self.time_emb_proj is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else nn.functional.silu(temb))
        added = None if temb is None or not self.adds else temb.expand(len(x), -1).float().contiguous()
        y = self.conv1(x, Norm.of(self.norm1, True, x), added)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2(y, Norm.of(self.norm2, True, y), None, shortcut.float())
