"""Stable Diffusion 2.1-base in diffusers' layout, from a folder or the hub, and weight files of others in general.

What is no weight file after all (a Git LFS pointer, a web page) is told by its kind; code in a pickle is never run.
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
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file

from qartsr_lib.backbones.osediff_configs import SCHEDULER_CONFIG
from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import stand_in

FOLDER = "stable-diffusion-2-1-base"
#: What is fetched of a hub repository; half-precision copies and other formats are left there.
_HUB_FILES = ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*.txt"]
_HUB_LEFT_OUT = ["*.fp16.safetensors", "*non_ema*", "*nonema*", "safety_checker/*", "feature_extractor/*"]
#: Older files of Stable Diffusion's VAE, 2.1-base's own among them, call the layers of its attention otherwise.
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
#: Names of the weights of UNet and VAE, the first that is there is read.
NETWORK_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt")
_AGAIN = "get the file again"


def resolve_base(base: str | Path | None) -> Path:
    """The local folder of a base model, checked to be one that OSEDiff's equations hold for, else a QartsrError.

    `base` is a folder, else a hub name such as "owner/stable-diffusion-2-1-base" (downloaded once into the hub's
    cache); None stands for FOLDER in the folder of weights (`paths.weights_dir`).
    """
    folder = Path(base).expanduser() if base is not None else paths.weights_dir() / FOLDER
    if not folder.is_dir() and base is not None and _is_hub_name(str(base)):
        folder = _downloaded(str(base))
    if not folder.is_dir():
        raise QartsrError(
            f"{folder}: no such folder; put Stable Diffusion 2.1-base (diffusers' layout) there, or name it with --base"
        )
    for part in ("unet", "vae"):
        if not (folder / part / "config.json").is_file():
            raise QartsrError(f"{folder / part / 'config.json'}: missing; --base needs a folder in diffusers' layout")
    path = folder / "scheduler" / "scheduler_config.json"
    found = _read_json(path) if path.is_file() else {}
    for name, wanted in SCHEDULER_CONFIG.items():  # Stable Diffusion 2.1 (768) has another prediction type
        if found.get(name, wanted) != wanted:
            raise QartsrError(
                f"{path}: {name} is {found[name]!r}, but OSEDiff needs {wanted!r}; use Stable Diffusion 2.1-base"
            )
    return folder


def _is_hub_name(name: str) -> bool:
    """owner/name, where no folder "owner" is here."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not parts[0].startswith((".", "~")) and not Path(parts[0]).exists()


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_LEFT_OUT))
    except Exception as error:  # the hub's client raises many kinds, offline, not found and refused among them
        raise QartsrError(
            f"--base {name}: neither a folder here nor to be had from the hub ({type(error).__name__}); "
            "download Stable Diffusion 2.1-base and name its folder"
        ) from error


def load_network(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """The network in `folder`, such as base/unet, as float32, for evaluation; a QartsrError where it is damaged."""
    read = read_weights(folder, *NETWORK_WEIGHTS)
    state = {_attention_name(key): value for key, value in read.items()}
    network = empty_network(kind, folder)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        detail = str(error).split("\n")[1].strip()[:160]
        raise QartsrError(f"{folder}: does not fit its config.json ({detail}); get the folder again") from error
    return network.eval().requires_grad_(False)


def empty_network(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """A network of the meta device by `folder`/config.json, to be given its tensors by `load_state_dict`."""
    try:
        with torch.device("meta"):
            return kind.from_config(kind.load_config(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise QartsrError(f"{folder / 'config.json'}: no {kind.__name__} ({first_line(error)}); {_AGAIN}") from error


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one line."""
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


def _attention_name(key: str) -> str:
    match = re.fullmatch(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{match[1]}.{_ATTENTION[match[2]]}.{match[3]}" if match else key


def read_weights(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """All tensors of one network, see `named_tensors`; from files of the first of `names` ("model.safetensors")."""
    state: dict[str, torch.Tensor] = {}
    types: set[torch.dtype] = set()
    files = weight_files(folder, *names)
    for path in files:
        found = load_tensors(path)
        if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise QartsrError(f"{path}: holds other things than named tensors; {_AGAIN}")
        types |= {value.dtype for value in found.values()}
        state |= named_tensors(path, found)
    warn_of_coarse(files[0], types)
    return state


def weight_files(folder: Path, *names: str) -> list[Path]:
    """The files with one network's tensors: whole or in parts with an index, full precision before "fp16"."""
    for name in names:
        stem, suffix = name.rsplit(".", 1)
        for variant in ("", ".fp16"):
            whole, index = folder / f"{stem}{variant}.{suffix}", folder / f"{name}.index{variant}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _parts(index)
    present = sorted(path.name for path in folder.glob("*.*") if path.suffix in _WEIGHTS)
    instead = f", but {', '.join(present[:3])}" if present else ""
    raise QartsrError(
        f"{folder}: holds no {' or '.join(names)} (nor .fp16){instead}; get that file, or rename the right one"
    )


def _parts(index: Path) -> list[Path]:
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise QartsrError(f"{index}: holds no weight_map; {_AGAIN}")
    parts = [index.parent / Path(str(name)).name for name in sorted(set(map(str, listed.values())))]
    for part in parts:
        if not part.is_file():
            raise QartsrError(f"{part}: missing, though {index.name} lists it; get it from where the others came from")
    return parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QartsrError(f"{path}: not readable JSON; {_AGAIN}") from error
    if not isinstance(found, dict):
        raise QartsrError(f"{path}: no JSON object; {_AGAIN}")
    return found


def load_tensors(path: Path) -> Any:
    """A safetensors file, else torch.load of tensors and plain values, on the CPU; nothing in the file is ever run.

    A QartsrError for what is missing, damaged, no weight file at all, or asks for code to be run.
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
        raise QartsrError(f"{path}: damaged, or no PyTorch weight file; {_AGAIN}") from error
    except (
        RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError
    ) as error:  # fmt: skip
        raise QartsrError(f"{path}: truncated or damaged weight file; {_AGAIN}") from error


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
    """Floating-point tensors as float32, all finite, under names without DataParallel's leading "module."."""
    named: dict[str, torch.Tensor] = {}
    for key, value in found.items():
        name = key.removeprefix("module.")
        if name in named:
            raise QartsrError(f"{path}: holds both {name} and module.{name}; get a file with one of them")
        named[name] = value.float() if value.is_floating_point() else value
    check_finite(named.items(), path, _AGAIN)
    return named


def warn_of_coarse(path: Path, types: Iterable[torch.dtype]) -> None:
    """Warn of numbers stored with fewer digits than float32."""
    coarse = {kind for kind in types if kind.is_floating_point and kind.itemsize < 4}
    if coarse:
        words = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in coarse))
        warnings.warn(f"{path}: stored as {words}; used in float32, yet as coarse as it was stored", stacklevel=2)
