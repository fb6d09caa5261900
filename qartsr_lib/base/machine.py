"""Threads and devices of command lines (whose help imports no torch), and environment variables set for a while."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from qartsr_lib.base.errors import QartsrError


def positive(text: str) -> int:
    """Of argparse: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: choose a whole number of at least 1")
    return number


def checked(device: str) -> str:
    """`device` ("cpu", "cuda", "cuda:1"), or a QartsrError where this machine does not have it."""
    import torch

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
    """On a GPU: products and convolutions in float32, not in PyTorch's TF32 of 10 bits, by algorithms that repeat."""
    import torch

    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


@contextmanager
def environment_variables(settings: Mapping[str, str], others: Iterable[str] = ()) -> Iterator[None]:
    """Set `settings`; afterwards they, and `others` that something else may have set, are as they were."""
    before = {name: os.environ.get(name) for name in (*settings, *others)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
