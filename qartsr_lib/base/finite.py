"""NaN and infinity in a file's tensors are told."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qartsr_lib.base.errors import Diverged


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: object, advice: str) -> None:
    """Refuse tensors that are not finite.

    Args:
        tensors: (name, tensor), such as of a state dict.
        source: file or model, for the message.
        advice: what to do, for the message.

    Raises:
        Diverged: one holds NaN or infinity; the message names it.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(f"{source}: {name} holds NaN or infinity; {advice}")
