"""The plan of a finetuning run as data: which blocks are quantized when, what is trained, by which loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError

ORDERS = ("reverse", "inference", "random")
QUANTITIES = ("features", "noise", "image")


@dataclass(frozen=True)
class Term:
    """One summand of a phase's loss, student against full precision.

    Attributes:
        quantity: "features", the output of block `after`; "noise", the UNet's prediction; "image".
        after: block of the "features"; the others have their own place.
    """

    quantity: str
    after: str = ""

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise QartsrError(f"loss term {self.quantity!r}: choose one of {', '.join(QUANTITIES)}")


@dataclass(frozen=True)
class Phase:
    """One part of a run.

    Attributes:
        blocks: names of the blocks that become quantized here; may be empty.
        images: how many images pass forward and backward.
        terms: the summands of the loss.
        trained: train these quantized blocks only; None for all that are quantized so far.
        kinds: train these kinds of parameters only (see QuantModule.tuned_parameters); None for all.
    """

    blocks: tuple[str, ...]
    images: int
    terms: tuple[Term, ...]
    trained: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


def in_order(groups: Sequence[tuple[str, ...]], order: str, seed: int) -> list[tuple[str, ...]]:
    """`groups`, given in inference order, as a run takes them up.

    Raises:
        QartsrError: unknown order.
    """
    if order not in ORDERS:
        raise QartsrError(f"order {order!r}: choose one of {', '.join(ORDERS)}")
    if order == "random":
        return random.Random(seed).sample(list(groups), len(groups))
    return list(groups) if order == "inference" else list(reversed(groups))


def split(images: int, parts: int) -> list[int]:
    """`images` in `parts` equal shares; the first ones get what is left over."""
    share, left = divmod(images, parts)
    return [share + (index < left) for index in range(parts)]


def block_groups(model: OneStepSR) -> list[tuple[str, ...]]:
    """The modules of RPQ in inference order: blocks, with single layers joined to the block beside them.

    A single layer at the beginning of encoder, UNet or decoder joins what follows, one at the end
    what precedes it, as the bars of the paper's Fig. 4 suggest.
    """
    groups: list[tuple[str, ...]] = []
    waiting: tuple[str, ...] = ()
    for name, block in model.blocks_in_order():
        single = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in block.modules()) <= 2
        at_the_end = name.endswith("conv_out") or name == "vae.quant_conv"
        if single and at_the_end and not waiting:
            groups[-1] += (name,)
        elif single:
            waiting += (name,)
        else:
            groups.append((*waiting, name))
            waiting = ()
    return groups
