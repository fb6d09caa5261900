"""A merged copy of base model and OSEDiff file in `save_pretrained`'s layout, so that the second start is fast.

`.cache/osediff/<key>/{unet,vae}/` and `prompts/`; the key is the sha256 of the sources' hashes and
the scale of the merge. Removing the folder costs one slow start and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from qartsr_lib.base import paths
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import flush, sha256, write_atomically, write_text

VERSION = 1
_NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
_WEIGHTS, _DESCRIPTION = "diffusion_pytorch_model.safetensors", "merged.json"


def root() -> Path:
    """Where all merged copies lie."""
    return paths.cache_dir() / "osediff"


def network_files(base: Path, file: Path) -> dict[str, Path]:
    """All that the merged networks depend on, by name."""
    found = [base / part / "config.json" for part in _NETWORKS]
    for part in _NETWORKS:
        found += sorted((base / part).glob("*.safetensors")) or sorted((base / part).glob("*.bin"))
    return {path.relative_to(base).as_posix(): path for path in found} | {"osediff": file}


def prompt_files(base: Path) -> dict[str, Path]:
    """All that a text embedding depends on, by name; nothing where the text encoder is absent."""
    found = sorted(path for part in ("text_encoder", "tokenizer") for path in (base / part).glob("*.*"))
    return {path.relative_to(base).as_posix(): path for path in found if path.is_file()}


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """sha256 by name.

    Hashing 3.8 GB takes seconds, so a file's hash is kept together with its size and time of change.

    Raises:
        QartsrError: a file is missing.
    """
    remembered = root() / "hashes.json"
    try:
        known = json.loads(remembered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    marks = {name: _mark(path) for name, path in files.items()}
    found = {name: known.get(mark) or sha256(files[name]) for name, mark in marks.items()}
    if any(mark not in known for mark in marks.values()):
        known |= {mark: found[name] for name, mark in marks.items()}
        with suppress(QartsrError, OSError):  # only the speed of the next start is lost
            write_text(remembered, json.dumps(known, indent=1) + "\n")
    return found


def _mark(path: Path) -> str:
    """What changes when a file does."""
    try:
        state = path.stat()
    except OSError as error:
        raise QartsrError(f"{path}: no such file; check the path") from error
    return f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"


def merged_key(sources: Mapping[str, str], alpha: float) -> str:
    """Name of the merged copy made from sources with these hashes."""
    return stable_hash({"version": VERSION, "sources": dict(sources), "alpha": alpha})


def trained_at(key: str) -> int | None:
    """The timestep label of a merged copy, None when it is not there."""
    try:
        found = json.loads((root() / key / _DESCRIPTION).read_text(encoding="utf-8"))["timestep"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def load_merged(key: str) -> tuple[UNet2DConditionModel, AutoencoderKL] | None:
    """UNet and VAE of a merged copy, None when it is not there; a damaged one is removed."""
    folder = root() / key
    if not folder.is_dir():
        return None
    try:
        networks = [_read(kind, folder / name) for name, kind in _NETWORKS.items()]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return networks[0], networks[1]


def _read(kind: type[nn.Module], folder: Path) -> nn.Module:
    """A network whose tensors are those of the file, not copies of them: nothing is initialized first."""
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder))
    network.load_state_dict(load_file(folder / _WEIGHTS), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def save_merged(key: str, unet: nn.Module, vae: nn.Module, sources: Mapping[str, str], timestep: int) -> None:
    """Write a merged copy: into a temporary folder, then renamed, so that it is whole or absent.

    A disk that is full or read-only is told by a warning: the next start is as slow as this one.
    """
    temporary = None
    try:
        root().mkdir(parents=True, exist_ok=True)
        for leftover in root().glob(".new-*"):  # of killed processes
            if not _is_recent(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=root()))
        for name, network in (("unet", unet), ("vae", vae)):
            network.save_pretrained(temporary / name, max_shard_size="100GB")
        stored = {name: getattr(network, "stored_as", "float32") for name, network in (("unet", unet), ("vae", vae))}
        described = {"version": VERSION, "timestep": timestep, "base_stored_as": stored, "sources": dict(sources)}
        (temporary / _DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        for path in temporary.rglob("*.safetensors"):
            flush(path)
        if not (root() / key).exists():  # another process may have been faster
            os.replace(temporary, root() / key)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not (root() / key).is_dir():
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"{root()}: the merged model could not be kept ({reason}); starts stay slow", stacklevel=2)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_recent(folder: Path, seconds: float = 3600.0) -> bool:
    """Whether another process may still be writing it."""
    try:
        return time.time() - folder.stat().st_mtime < seconds
    except OSError:
        return False


def load_prompt(key: str) -> torch.Tensor | None:
    """A kept text embedding, (1, tokens, dim), or None."""
    try:
        return load_file(_prompt_path(key))["embedding"]
    except (OSError, SafetensorError, KeyError):
        return None


def save_prompt(key: str, embedding: torch.Tensor) -> None:
    """Keep a text embedding; failing costs only the next start's time."""
    tensors = {"embedding": embedding.contiguous()}
    with suppress(QartsrError, OSError, SafetensorError):
        write_atomically(_prompt_path(key), lambda temporary: save_file(tensors, temporary))


def _prompt_path(key: str) -> Path:
    return root() / "prompts" / f"{key}.safetensors"
