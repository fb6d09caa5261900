"""OSEDiff's weight file: read without running what a pickle may contain, every key accounted for.

Two layouts are known. `osediff.pkl` (OSEDiff's releases) has the networks' tensors in
`state_dict_unet` and `state_dict_vae`: LoRA factors, and the retrained `conv_in` of the UNet. The
second, `osediff.ckpt` (PassionSR's), calls them `unet_state_dict` and `vae_state_dict`; it was
never published, so its layout is known only from the code that reads it: diffusers' names,
perhaps behind "unet.", perhaps with further full weights, and a LoRA of the VAE's decoder that
PassionSR itself leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qartsr_lib.backbones.lora import Adapter, merge_
from qartsr_lib.backbones.osediff_files import load_tensors, named_tensors, stored_type
from qartsr_lib.base.errors import QartsrError

RELEASED_TIMESTEP = 1000
EXTRA = "qartsr"  # our own entry beside the released ones, which OSEDiff's loader does not look at

#: Entry of a layout -> what it holds. An entry that is in neither is an error.
_TENSORS = {
    "state_dict_unet": "unet",
    "unet_state_dict": "unet",
    "state_dict_vae": "vae",
    "vae_state_dict": "vae",
}
_RANKS = {"rank_unet": "unet", "rank_vae": "vae"}
_LISTS = {
    "unet_lora_encoder_modules": "unet",
    "unet_lora_decoder_modules": "unet",
    "unet_lora_others_modules": "unet",
    "vae_lora_encoder_modules": "vae",
}
#: PassionSR's reader drops these too: the decoder stays Stable Diffusion's.
_LEFT_OUT_LISTS = ("vae_lora_decoder_modules",)
_LEFT_OUT_ADAPTERS = {"vae": ("default_decoder",), "unet": ()}
_KNOWN = (*_TENSORS, *_RANKS, *_LISTS, *_LEFT_OUT_LISTS, EXTRA)

_LORA_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight")


@dataclass(frozen=True)
class Part:
    """What a file holds for one network.

    Attributes:
        adapters: layer name -> LoRA factors.
        weights: parameter name -> tensor that replaces the base model's.
        left_out: keys that are not used on purpose.
    """

    adapters: Mapping[str, Adapter]
    weights: Mapping[str, torch.Tensor]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A file's content, checked for consistency but not yet against a network.

    Attributes:
        path: the file.
        unet, vae: content by network.
        timestep: label T it was trained at; 1000 unless the file says otherwise.
        extra: what TRQ noted about the training; empty for released files.
    """

    path: Path
    unet: Part
    vae: Part
    timestep: int
    extra: Mapping[str, Any]

    def apply_(self, unet: nn.Module, vae: nn.Module, alpha: float) -> None:
        """Replace and merge into the base model's networks, in place.

        Raises:
            QartsrError: a key names nothing in the network, or has another shape there.
        """
        for network, part, label in ((unet, self.unet, "UNet"), (vae, self.vae, "VAE")):
            self._check(network, part, label)
            with torch.no_grad():
                for name, tensor in part.weights.items():
                    network.get_parameter(name).copy_(tensor)
            merge_(network, part.adapters, alpha)

    def _check(self, network: nn.Module, part: Part, label: str) -> None:
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        wanted = {name: tensor.shape for name, tensor in part.weights.items()}
        wanted |= {f"{layer}.weight": adapter.shape for layer, adapter in part.adapters.items()}
        for name, shape in wanted.items():
            if name not in shapes:
                raise QartsrError(
                    f"{self.path}: {name} is in no layer of the base model's {label}; "
                    "use the base that the file was trained on, Stable Diffusion 2.1-base"
                )
            if shapes[name] != shape:
                raise QartsrError(
                    f"{self.path}: {name} is {tuple(shape)} in the file and {tuple(shapes[name])} in the base model's "
                    f"{label}; use the base that the file was trained on, Stable Diffusion 2.1-base"
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of either layout; tensors as float32.

    Raises:
        QartsrError: the file is missing, damaged, would run code, or has entries or keys that are
            unknown, incomplete or contradict each other; the message names the key.
    """
    path = Path(path)
    content = load_tensors(path)
    if not isinstance(content, dict) or not set(content) & set(_TENSORS):
        raise QartsrError(f"{path}: holds no entry state_dict_unet; name an osediff.pkl")
    for entry in content:
        if entry not in _KNOWN:
            raise QartsrError(f"{path}: unknown entry {entry!r}; name an unmodified osediff.pkl")
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for entry, network in _TENSORS.items():
        if entry in content:
            tensors[network] = _named_tensors(path, entry, content[entry])
    for network, entry in (("unet", "state_dict_unet"), ("vae", "state_dict_vae")):
        if network not in tensors:
            raise QartsrError(f"{path}: entry {entry!r} is missing; get the file again")
    parts = {network: _part(path, network, tensors[network]) for network in ("unet", "vae")}
    for name in ("conv_in.weight", "conv_in.bias"):
        if name not in parts["unet"].weights:
            key = name.replace(".", ".base_layer.")
            raise QartsrError(f"{path}: {key} is missing (OSEDiff retrains the UNet's conv_in); get the file again")
    for entry, network in _RANKS.items():
        _check_rank(path, entry, content.get(entry), parts[network])
    _check_lists(path, content, parts)
    extra = content.get(EXTRA, {})
    timestep = extra.get("timestep", RELEASED_TIMESTEP) if isinstance(extra, dict) else None
    if not isinstance(timestep, int):
        raise QartsrError(f"{path}: entry {EXTRA!r} is damaged; get the file again")
    return Checkpoint(path, parts["unet"], parts["vae"], timestep, extra)


def _named_tensors(path: Path, entry: str, found: object) -> dict[str, torch.Tensor]:
    if not isinstance(found, dict):
        raise QartsrError(f"{path}: entry {entry!r} holds no tensors; get the file again")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise QartsrError(f"{path}: {entry}[{key!r}] is no tensor; get the file again")
    stored_type(path, {value.dtype for value in found.values()})
    return {key.removeprefix("unet.").removeprefix("vae."): value for key, value in named_tensors(path, found).items()}


def _part(path: Path, network: str, tensors: Mapping[str, torch.Tensor]) -> Part:
    """Sort the keys of one network into LoRA factors and full weights."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    weights: dict[str, torch.Tensor] = {}
    left_out = []
    for key, value in tensors.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None and "lora" in key:
            raise QartsrError(f"{path}: cannot tell which layer {key!r} belongs to; name an unmodified osediff.pkl")
        if match is None:
            weights[key.replace(".base_layer.", ".")] = value
        elif match["adapter"] in _LEFT_OUT_ADAPTERS[network]:
            left_out.append(key)
        elif match["factor"] in factors.setdefault(match["layer"], {}):
            raise QartsrError(f"{path}: {match['layer']} has more than one adapter ({key}); one per layer is known")
        else:
            factors[match["layer"]][match["factor"]] = value
    adapters = {}
    for layer, pair in factors.items():
        for factor in "AB":
            if factor not in pair:
                raise QartsrError(f"{path}: {layer}.lora_{factor} is missing; get the file again")
        adapters[layer] = Adapter(pair["A"], pair["B"])
        if not adapters[layer].is_consistent:
            shapes = f"{tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}"
            raise QartsrError(f"{path}: the LoRA factors of {layer} do not fit together, {shapes}; get the file again")
    return Part(adapters, weights, tuple(left_out))


def _check_rank(path: Path, entry: str, stated: object, part: Part) -> None:
    """The tensors' shapes give the rank; the stated one must not contradict them."""
    for layer, adapter in part.adapters.items():
        if stated is not None and adapter.rank != stated:
            raise QartsrError(f"{path}: {layer} has rank {adapter.rank}, but {entry} is {stated}; get the file again")


def _check_lists(path: Path, content: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """The layers that the file lists are those that it has tensors for."""
    for network, part in parts.items():
        entries = [entry for entry, owner in _LISTS.items() if owner == network and entry in content]
        listed = {name.removeprefix("module."): entry for entry in entries for name in content[entry]}
        for name, entry in listed.items():
            if name not in part.adapters:
                raise QartsrError(f"{path}: {entry} lists {name}, but its LoRA tensors are missing; get the file again")
        for layer in part.adapters:
            if entries and layer not in listed:
                raise QartsrError(
                    f"{path}: {layer} has LoRA tensors, but no list of layers names it; get the file again"
                )
