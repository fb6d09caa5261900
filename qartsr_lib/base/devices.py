"""What a GPU must be told so that its numbers can be compared with a CPU's."""

from __future__ import annotations

import torch

from qartsr_lib.base.errors import QartsrError


def checked(device: str) -> str:
    """`device`, if this machine has it: "cpu", "cuda" or "cuda:1".

    Raises:
        QartsrError: no such device here.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise QartsrError(f"device {device!r}: choose cpu, cuda or cuda:N")
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise QartsrError(f"device {device!r}: there is no such GPU here; use cpu")
    return device


def make_exact(device: str) -> None:
    """On a GPU: float32 products and convolutions in float32, not in TF32's 10 bits, by algorithms that repeat.

    TF32 is PyTorch's default in convolutions; its rounding is of the size of an 8-bit step.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
