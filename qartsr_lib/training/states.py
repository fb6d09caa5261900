"""What trainings share: files of one that may be interrupted (state, history in lines of JSON), and what they tell."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically

#: Options whose values are hashes -> what is told of another one.
_HASHED = {"images": "other photographs", "base": "another base model", "teacher": "another teacher"}
_DAMAGE = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, atomically."""
    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


@contextmanager
def saved_state(path: Path) -> Iterator[dict[str, Any]]:
    """What `save_state` wrote, on the CPU; a QartsrError where it cannot be read, or the block cannot use it."""
    try:
        yield torch.load(path, weights_only=True, map_location="cpu")
    except _DAMAGE as error:
        raise QartsrError(f"{path}: damaged, or of another version; remove it to start anew") from error


def check_begun(path: Path, begun: Mapping[str, Any], asked: Mapping[str, Any], otherwise: str) -> None:
    """A QartsrError where `path` tells that a training was `begun` with another value of an option than is `asked` for.

    A KeyError where it tells nothing of one; of those in _HASHED no value is told. `otherwise`: what else to do.
    """
    for name, value in asked.items():
        if begun[name] != value:
            told = _HASHED.get(name, f"{name} {begun[name]}")
            raise QartsrError(f"{path}: was begun with {told}; use that again, or {otherwise}")


def tell_left_out(images: int, used: int, size: int, option: str = "") -> None:
    """Say how many of a folder's images are too small for crops of `size` pixels, if any."""
    if used < images:
        print(f"{option}{images - used} of {images} images are under {size}x{size} pixels and left out", flush=True)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add `record` to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
