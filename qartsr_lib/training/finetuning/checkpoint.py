"""The state of an interrupted finetuning run, kept after every phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically


def save_checkpoint(
    path: Path,
    plan: str,
    done: int,
    tuned: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    history: Sequence[dict[str, float]],
) -> None:
    """Write what `load_checkpoint` needs to continue after `done` phases of `plan`."""
    content = {
        "plan": plan,
        "done": done,
        "tuned": [tensor.detach() for tensor in tuned],
        "optimizer": optimizer.state_dict(),
        "history": list(history),
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


@torch.no_grad()
def load_checkpoint(
    path: Path, plan: str, tuned: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Restore `tuned` and `optimizer` in place, wherever they lie; return (finished phases, their history).

    Raises:
        QartsrError: damaged file, or one of another plan.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found, done, kept, history = (content[key] for key in ("plan", "done", "tuned", "history"))
        state = content["optimizer"]
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise QartsrError(f"{path}: not a readable checkpoint; delete it to start again") from error
    if found != plan or [tensor.shape for tensor in kept] != [tensor.shape for tensor in tuned]:
        raise QartsrError(f"{path}: belongs to another run; delete it or choose another folder")
    for tensor, value in zip(tuned, kept, strict=True):
        tensor.copy_(value)
    optimizer.load_state_dict(state)
    return done, history
