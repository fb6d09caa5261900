"""Stable Diffusion 2.1-base in diffusers' layout, from a folder or by its name on the hub."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from qartsr_lib.backbones.osediff_configs import SCHEDULER_CONFIG
from qartsr_lib.backbones.osediff_files import read_json, read_weights, weight_files
from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError

FOLDER = "stable-diffusion-2-1-base"
#: What is fetched of a hub repository; half-precision copies and other formats are left there.
_HUB_FILES = ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*.txt"]
_HUB_LEFT_OUT = ["*.fp16.safetensors", "*non_ema*", "*nonema*", "safety_checker/*", "feature_extractor/*"]

NETWORK_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def resolve_base(base: str | Path | None) -> Path:
    """The local folder of a base model, checked to be one that OSEDiff's equations hold for.

    Args:
        base: a folder, else a hub name such as "owner/stable-diffusion-2-1-base" (downloaded once
            into the hub's cache), else None for the folder of weights (`paths.weights_dir`).

    Raises:
        QartsrError: no such folder or hub repository, a part is missing, or another kind of model.
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
    _check_scheduler(folder)
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


def _check_scheduler(folder: Path) -> None:
    """Refuse base models of another noise schedule or prediction type, Stable Diffusion 2.1 (768) for one."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():  # OSEDiff's own networks need nothing of it
        return
    found = read_json(path)
    for name, wanted in SCHEDULER_CONFIG.items():
        if found.get(name, wanted) != wanted:
            raise QartsrError(
                f"{path}: {name} is {found[name]!r}, but OSEDiff needs {wanted!r}; use Stable Diffusion 2.1-base"
            )


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet in `folder`/unet as float32.

    Raises:
        QartsrError: damaged, incomplete, or not there; see `osediff_files`.
    """
    return _load(UNet2DConditionModel, folder / "unet")


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE in `folder`/vae as float32; see `load_unet`."""
    return _load(AutoencoderKL, folder / "vae")


def _load(kind: type[nn.Module], folder: Path) -> nn.Module:
    files = weight_files(folder, *NETWORK_FILES)
    read, stored = read_weights(files)
    state = {_attention_name(key): value for key, value in read.items()}
    try:
        with torch.device("meta"):
            network = kind.from_config(kind.load_config(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise QartsrError(f"{folder / 'config.json'}: no {kind.__name__} ({detail}); get the file again") from error
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    for problem, keys in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if keys:
            raise QartsrError(
                f"{folder}: {problem} key {min(keys)}; the weights do not fit config.json, get the folder again"
            )
    for key, shape in wanted.items():
        if state[key].shape != shape:
            raise QartsrError(
                f"{folder}: {key} is {tuple(state[key].shape)} where config.json needs {tuple(shape)}; "
                "get the folder again"
            )
    network.load_state_dict(state, assign=True)
    network.stored_as = stored
    return network.eval().requires_grad_(False)


def _attention_name(key: str) -> str:
    """Older files of Stable Diffusion's VAE, 2.1-base's own among them, call the layers of its attention otherwise."""
    match = re.fullmatch(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{match[1]}.{_ATTENTION[match[2]]}.{match[3]}" if match else key
