"""The plan of a finetuning run as data: which blocks are quantized when, what is trained, by which loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError

ORDERS = ("reverse", "inference", "random")
QUANTITIES = ("features", "noise", "image")
#: The last blocks of a backbone's three parts.
ENCODER_END, UNET_END, DECODER_END = "vae.quant_conv", "unet.conv_out", "vae.decoder.conv_out"


@dataclass(frozen=True)
class Term:
    """One summand of a loss: "features", the output of block `after`; "noise", the UNet's prediction; or "image"."""

    quantity: str
    after: str = ""

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise QartsrError(f"loss term {self.quantity!r}: choose one of {', '.join(QUANTITIES)}")


LATENT, Z_H, PIXELS = Term("features", ENCODER_END), Term("features", UNET_END), Term("features", DECODER_END)
"""Normalized squared errors of z_L, z_H and the image."""
NOISE = Term("noise")
_NAMES = {LATENT: "z_L", NOISE: "noise", Z_H: "z_H", PIXELS: "image"}


@dataclass(frozen=True)
class Phase:
    """One part of a run."""

    blocks: tuple[str, ...]  # names of those that become quantized here; may be none
    images: int  # how many pass forward and backward
    terms: tuple[Term, ...]  # the summands of the loss
    trained: tuple[str, ...] | None = None  # the only quantized blocks that are trained; None for all
    kinds: tuple[str, ...] | None = None  # the only kinds of QuantModule.tuned_parameters that are; None for all


def in_order(groups: Sequence[tuple[str, ...]], order: str, seed: int) -> list[tuple[str, ...]]:
    """`groups`, given in inference order, as a run takes them up; a QartsrError for an unknown order."""
    if order not in ORDERS:
        raise QartsrError(f"order {order!r}: choose one of {', '.join(ORDERS)}")
    if order == "random":
        return random.Random(seed).sample(list(groups), len(groups))
    return list(groups) if order == "inference" else list(reversed(groups))


def split(images: int, parts: int) -> list[int]:
    """`images` in `parts` equal shares; the first ones get what is left over."""
    share, left = divmod(images, parts)
    return [share + (index < left) for index in range(parts)]


def batch_orders(phases: Sequence[Phase], sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Numbers of the batches of every phase: all of them, of `sizes` images, shuffled again and again.

    A phase ends as soon as all images planned up to its end have passed: never more than a part of a batch late.
    """
    orders, planned, passed = [], 0, 0
    for number, phase in enumerate(phases):
        generator, order, waiting = random.Random(f"{seed}-{number}"), [], []
        planned += phase.images
        while passed < planned:
            waiting = waiting or generator.sample(range(len(sizes)), len(sizes))
            order.append(waiting.pop())
            passed += sizes[order[-1]]
        orders.append(order)
    return orders


def batches_of(images: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    """Images (1, 3, h, w) of equal size joined to batches (up to `size`, 3, h, w), the order kept within a size."""
    by_shape: dict[torch.Size, list[torch.Tensor]] = {}
    for image in images:
        by_shape.setdefault(image.shape, []).append(image)
    return [torch.cat(same[i : i + size]) for same in by_shape.values() for i in range(0, len(same), size)]


def everything(backbone: nn.Module) -> tuple[str, ...]:
    """All blocks in inference order."""
    return tuple(name for name, _ in backbone.blocks_in_order())


def three_parts(backbone: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Blocks of encoder, UNet and decoder."""
    names = everything(backbone)
    encoder, unet = names.index(ENCODER_END) + 1, names.index(UNET_END) + 1
    return names[:encoder], names[encoder:unet], names[unet:]


def block_groups(model: OneStepSR) -> list[tuple[str, ...]]:
    """The modules of RPQ in inference order: blocks, with single layers joined to the block beside them.

    One at the beginning of encoder, UNet or decoder joins what follows, one at the end what precedes it (Fig. 4).
    """
    groups, waiting = [], ()
    for name, block in model.blocks_in_order():
        single = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in block.modules()) <= 2
        at_the_end = name.endswith("conv_out") or name == ENCODER_END
        if single and at_the_end and not waiting:
            groups[-1] += (name,)
        elif single:
            waiting += (name,)
        else:
            groups.append((*waiting, name))
            waiting = ()
    return groups


def losses_of(plan: Sequence[Phase], image_loss: str) -> str:
    """What `plan` trains by, in words for a table's note."""
    terms = list(dict.fromkeys(term for phase in plan for term in phase.terms))
    if any(term.quantity == "image" for term in terms):
        return f"image loss {image_loss}"
    if not all(term in _NAMES for term in terms):
        return "squared errors of modules"
    names = [_NAMES[term] for term in terms]
    return "squared errors of " + " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
