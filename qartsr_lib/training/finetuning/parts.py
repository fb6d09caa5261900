"""The three parts of a backbone by block name, and how far each is from full precision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qartsr_lib.training.finetuning.phases import Phase, Term

ENCODER_END, UNET_END, DECODER_END = "vae.quant_conv", "unet.conv_out", "vae.decoder.conv_out"
LATENT, Z_H, PIXELS = Term("features", ENCODER_END), Term("features", UNET_END), Term("features", DECODER_END)
"""Normalized squared errors of z_L, z_H and the image."""
NOISE = Term("noise")
_NAMES = {LATENT: "z_L", NOISE: "noise", Z_H: "z_H", PIXELS: "image"}


def everything(backbone: nn.Module) -> tuple[str, ...]:
    """All blocks in inference order."""
    return tuple(name for name, _ in backbone.blocks_in_order())


def three_parts(backbone: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Blocks of encoder, UNet and decoder."""
    names = everything(backbone)
    encoder, unet = names.index(ENCODER_END) + 1, names.index(UNET_END) + 1
    return names[:encoder], names[encoder:unet], names[unet:]


def losses_of(plan: Sequence[Phase], image_loss: str) -> str:
    """What `plan` trains by, in words for a table's note: `image_loss` where it is used, else the squared errors."""
    terms = list(dict.fromkeys(term for phase in plan for term in phase.terms))
    if any(term.quantity == "image" for term in terms):
        return f"image loss {image_loss}"
    if not all(term in _NAMES for term in terms):
        return "squared errors of modules"
    names = [_NAMES[term] for term in terms]
    return "squared errors of " + " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
