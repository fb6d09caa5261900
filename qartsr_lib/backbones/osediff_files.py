"""Weight files of others: found under the names that diffusers and transformers give them, read as tensors only.

What is no weight file after all (a Git LFS pointer, a web page) is told by its kind; code that a
pickle may ask for is never run.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import stand_in


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it, or a QartsrError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QartsrError(f"{path}: not readable JSON; get the file again") from error
    if not isinstance(found, dict):
        raise QartsrError(f"{path}: no JSON object; get the file again")
    return found


def weight_files(folder: Path, *names: str) -> list[Path]:
    """The files with one network's tensors: whole or in parts with an index, full precision before "fp16".

    Args:
        folder: of the network.
        names: such as "diffusion_pytorch_model.safetensors", in the order of preference.

    Raises:
        QartsrError: there is none, or a part that an index lists is missing.
    """
    for name in names:
        stem, suffix = name.rsplit(".", 1)
        for variant in ("", ".fp16"):
            whole, index = folder / f"{stem}{variant}.{suffix}", folder / f"{name}.index{variant}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _parts(index)
    present = sorted(
        path.name for path in folder.glob("*.*") if path.suffix in (".safetensors", ".bin", ".ckpt", ".pt")
    )
    instead = f", but {', '.join(present[:3])}" if present else ""
    raise QartsrError(
        f"{folder}: holds no {' or '.join(names)} (nor .fp16){instead}; get that file, or rename the right one"
    )


def _parts(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise QartsrError(f"{index}: holds no weight_map; get the file again")
    parts = [index.parent / Path(str(name)).name for name in sorted(set(map(str, listed.values())))]
    for part in parts:
        if not part.is_file():
            raise QartsrError(f"{part}: missing, though {index.name} lists it; get it from where the others came from")
    return parts


def read_weights(files: list[Path]) -> tuple[dict[str, torch.Tensor], str]:
    """All tensors of one network by name, see `named_tensors`, and the type that they were stored in.

    Raises:
        QartsrError: see `load_tensors` and `named_tensors`.
    """
    state: dict[str, torch.Tensor] = {}
    types: set[torch.dtype] = set()
    for path in files:
        found = load_tensors(path)
        if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise QartsrError(f"{path}: holds other things than named tensors; get the file again")
        types |= {value.dtype for value in found.values()}
        state |= named_tensors(path, found)
    return state, stored_type(files[0], types)


def load_tensors(path: Path) -> Any:
    """A safetensors file, else torch.load of tensors and plain values, on the CPU; nothing in the file is ever run.

    Raises:
        QartsrError: missing, damaged, no weight file at all, or asking for code to be run.
    """
    try:
        _check_kind(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise QartsrError(f"{path}: no such file; check the path") from error
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)|GLOBAL |unrecognized function", str(error)):
            raise QartsrError(
                f"{path}: refused, the file asks for code to be run and not only for tensors; get it from its source"
            ) from error
        raise QartsrError(f"{path}: damaged, or no PyTorch weight file; get the file again") from error
    except (
        RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError
    ) as error:  # fmt: skip
        raise QartsrError(f"{path}: truncated or damaged weight file; get the file again") from error


def _check_kind(path: Path) -> None:
    """Name what is often saved in a weight file's place; any text will do, weights never begin with 64 letters."""
    with open(path, "rb") as stream:
        start = stream.read(256)
    if other := stand_in(start):
        raise QartsrError(f"{path}: {other}")
    if re.fullmatch(rb"[\t\n\r -~]+", start[:64]):
        text = start.decode("ascii", "replace").split("\n")[0].strip()[:60]
        raise QartsrError(f"{path}: text in place of the weights ({text!r}); download the file again")


def named_tensors(path: Path, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors as float32, under names without DataParallel's leading "module.".

    Raises:
        QartsrError: two tensors of one name, or numbers that are not finite.
    """
    named: dict[str, torch.Tensor] = {}
    for key, value in found.items():
        name = key.removeprefix("module.")
        if name in named:
            raise QartsrError(f"{path}: holds both {name} and module.{name}; get a file with one of them")
        named[name] = value.float() if value.is_floating_point() else value
    check_finite(named.items(), path, "get the file again")
    return named


def stored_type(path: Path, types: Iterable[torch.dtype]) -> str:
    """Name of the type of a file's numbers; warns of one with fewer digits than float32."""
    short = {kind for kind in types if kind.is_floating_point and kind.itemsize < 4}
    if not short:
        return "float32"
    words = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in short))
    warnings.warn(f"{path}: stored as {words}; used in float32, yet as coarse as it was stored", stacklevel=2)
    return words
