"""The three parts of a backbone by block name, and how far each is from full precision."""

from __future__ import annotations

from torch import nn

from qartsr_lib.finetuning.phases import Term

ENCODER_END, UNET_END, DECODER_END = "vae.quant_conv", "unet.conv_out", "vae.decoder.conv_out"
LATENT, Z_H, PIXELS = Term("features", ENCODER_END), Term("features", UNET_END), Term("features", DECODER_END)
"""Normalized squared errors of z_L, z_H and the image."""
NOISE = Term("noise")


def everything(backbone: nn.Module) -> tuple[str, ...]:
    """All blocks in inference order."""
    return tuple(name for name, _ in backbone.blocks_in_order())


def three_parts(backbone: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Blocks of encoder, UNet and decoder."""
    names = everything(backbone)
    encoder, unet = names.index(ENCODER_END) + 1, names.index(UNET_END) + 1
    return names[:encoder], names[encoder:unet], names[unet:]
