"""OSEDiff's weight file, osediff.pkl: read with every key accounted for, and written by TRQ.

`state_dict_unet` and `state_dict_vae` hold LoRA factors and the retrained `conv_in` of the UNet. PassionSR's
`osediff.ckpt`, known only from the code that reads it, names them `unet_state_dict` and `vae_state_dict`, its keys
perhaps behind "unet.", and has a LoRA of the VAE's decoder that PassionSR itself leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qartsr_lib.backbones.lora import Adapter, LoraLayer, merge_
from qartsr_lib.backbones.osediff_files import load_tensors, named_tensors, warn_of_coarse
from qartsr_lib.base.atomic import write_atomically
from qartsr_lib.base.errors import QartsrError

RELEASED_TIMESTEP = 1000
EXTRA = "qartsr"  # our own entry beside the released ones, which OSEDiff's loader does not look at
_TENSORS = {"unet": ("state_dict_unet", "unet_state_dict"), "vae": ("state_dict_vae", "vae_state_dict")}
#: Entries that list a network's adapted layers.
_LISTS = {
    "unet": [f"unet_lora_{part}_modules" for part in ("encoder", "decoder", "others")],
    "vae": ["vae_lora_encoder_modules"],
}
_LEFT_OUT_LIST, _LEFT_OUT_ADAPTER = "vae_lora_decoder_modules", ("vae", "default_decoder")
_KNOWN = {"rank_unet", "rank_vae", _LEFT_OUT_LIST, EXTRA}.union(*_TENSORS.values(), *_LISTS.values())
_LORA_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight")
_AGAIN = "get the file again"


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
        timestep: label T it was trained at; 1000 unless the file says otherwise.
    """

    path: Path
    unet: Part
    vae: Part
    timestep: int

    def apply_(self, unet: nn.Module, vae: nn.Module) -> None:
        """Replace and merge into the base model's networks, in place.

        Raises:
            QartsrError: a key names nothing in the network, or has another shape there.
        """
        for network, part, label in ((unet, self.unet, "UNet"), (vae, self.vae, "VAE")):
            self._check(network, part, label)
            with torch.no_grad():
                for name, tensor in part.weights.items():
                    network.get_parameter(name).copy_(tensor)
            merge_(network, part.adapters)

    def _check(self, network: nn.Module, part: Part, label: str) -> None:
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        wanted = {name: tensor.shape for name, tensor in part.weights.items()}
        wanted |= {f"{layer}.weight": adapter.shape for layer, adapter in part.adapters.items()}
        for name, shape in wanted.items():
            found, problem = shapes.get(name), ""
            if found is None:
                problem = f"is in no layer of the base model's {label}"
            elif found != shape:
                problem = f"is {tuple(shape)} in the file and {tuple(found)} in the base model's {label}"
            if problem:
                raise QartsrError(
                    f"{self.path}: {name} {problem}; use the base that the file was trained on, "
                    "Stable Diffusion 2.1-base"
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of either layout; tensors as float32.

    Raises:
        QartsrError: the file is missing, damaged, would run code, or has entries or keys that are
            unknown, incomplete or contradict each other; the message names the key.
    """
    path = Path(path)
    content = load_tensors(path)
    if not isinstance(content, dict) or not set(content) & {entry for names in _TENSORS.values() for entry in names}:
        raise QartsrError(f"{path}: holds no entry state_dict_unet; name an osediff.pkl")
    for entry in content:
        if entry not in _KNOWN:
            raise QartsrError(f"{path}: unknown entry {entry!r}; name an unmodified osediff.pkl")
    unet, vae = (_part(path, network, content) for network in _TENSORS)
    for name in ("weight", "bias"):
        if f"conv_in.{name}" not in unet.weights:
            raise QartsrError(
                f"{path}: conv_in.base_layer.{name} is missing (OSEDiff retrains the UNet's conv_in); {_AGAIN}"
            )
    extra = content.get(EXTRA, {})
    timestep = extra.get("timestep", RELEASED_TIMESTEP) if isinstance(extra, dict) else None
    if not isinstance(timestep, int):
        raise QartsrError(f"{path}: entry {EXTRA!r} is damaged; {_AGAIN}")
    return Checkpoint(path, unet, vae, timestep)


def _part(path: Path, network: str, content: Mapping[str, Any]) -> Part:
    """What the file holds for one network: its keys sorted into LoRA factors and full weights, and checked."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    weights, adapters, left_out = {}, {}, []
    for key, value in _tensors(path, network, content).items():
        match = _LORA_KEY.fullmatch(key)
        if match is None and "lora" in key:
            raise QartsrError(f"{path}: cannot tell which layer {key!r} belongs to; name an unmodified osediff.pkl")
        if match is None:
            weights[key.replace(".base_layer.", ".")] = value
        elif (network, match["adapter"]) == _LEFT_OUT_ADAPTER:
            left_out.append(key)
        elif match["factor"] in factors.setdefault(match["layer"], {}):
            raise QartsrError(f"{path}: {match['layer']} has more than one adapter ({key}); one per layer is known")
        else:
            factors[match["layer"]][match["factor"]] = value
    rank = content.get(f"rank_{network}")
    lists = [entry for entry in _LISTS[network] if entry in content]
    listed = {name.removeprefix("module."): entry for entry in lists for name in content[entry]}
    for layer, pair in factors.items():
        for factor in "AB":
            if factor not in pair:
                raise QartsrError(f"{path}: {layer}.lora_{factor} is missing; {_AGAIN}")
        adapters[layer] = adapter = Adapter(pair["A"], pair["B"])
        if not adapter.is_consistent:
            shapes = f"{tuple(adapter.a.shape)} and {tuple(adapter.b.shape)}"
            raise QartsrError(f"{path}: the LoRA factors of {layer} do not fit together, {shapes}; {_AGAIN}")
        if rank not in (None, len(adapter.a)):
            raise QartsrError(f"{path}: {layer} has rank {len(adapter.a)}, but rank_{network} is {rank}; {_AGAIN}")
        if lists and layer not in listed:
            raise QartsrError(f"{path}: {layer} has LoRA tensors, but no list of layers names it; {_AGAIN}")
    for name, entry in listed.items():
        if name not in adapters:
            raise QartsrError(f"{path}: {entry} lists {name}, but its LoRA tensors are missing; {_AGAIN}")
    return Part(adapters, weights, tuple(left_out))


def _tensors(path: Path, network: str, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a network, by their names in it."""
    entry = next((name for name in _TENSORS[network] if name in content), None)
    if entry is None:
        raise QartsrError(f"{path}: entry {_TENSORS[network][0]!r} is missing; {_AGAIN}")
    found = content[entry]
    if not isinstance(found, dict):
        raise QartsrError(f"{path}: entry {entry!r} holds no tensors; {_AGAIN}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise QartsrError(f"{path}: {entry}[{key!r}] is no tensor; {_AGAIN}")
    warn_of_coarse(path, {value.dtype for value in found.values()})
    return {key.removeprefix("unet.").removeprefix("vae."): value for key, value in named_tensors(path, found).items()}


def unet_targets(unet: nn.Module) -> dict[str, str]:
    """Layers of the UNet that OSEDiff adapts -> adapter name: 258 of the full-size UNet's 282.

    All but the time embedding and its projections.
    """
    adapters = (("down_blocks", "default_encoder"), ("conv_in", "default_encoder"))
    adapters += (("up_blocks", "default_decoder"), ("conv_out", "default_decoder"), ("", "default_others"))
    names = [name for name in _layers(unet) if "time_emb" not in name]
    return {name: next(adapter for part, adapter in adapters if part in name) for name in names}


def vae_targets(vae: nn.Module) -> dict[str, str]:
    """Layers of the VAE that OSEDiff adapts: the whole encoder and quant_conv, 32 at full size."""
    names = [name for name in _layers(vae) if name.startswith("encoder.") or name == "quant_conv"]
    return dict.fromkeys(names, "default_encoder")


def _layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


def write_checkpoint(path: str | Path, unet: nn.Module, vae: nn.Module, extra: Mapping[str, Any]) -> Path:
    """Write adapted networks (`lora.attach_` by the targets above) in the layout of osediff.pkl, atomically.

    Args:
        extra: plain values; at least {"timestep": label T}.
    """
    content: dict[str, Any] = {"vae_lora_encoder_modules": _adapted(vae, "default_encoder")}
    for part in ("encoder", "decoder", "others"):
        content[f"unet_lora_{part}_modules"] = _adapted(unet, f"default_{part}")
    for network, words in ((unet, ("lora", "conv_in")), (vae, ("lora",))):
        name = "unet" if network is unet else "vae"
        layer = next(module for module in network.modules() if isinstance(module, LoraLayer))
        content[f"rank_{name}"] = len(layer.lora_A[layer.adapter].weight)
        state = network.state_dict().items()
        content[f"state_dict_{name}"] = {k: v.float().cpu() for k, v in state if any(word in k for word in words)}
    content[EXTRA] = dict(extra)
    return write_atomically(path, lambda temporary: torch.save(content, temporary))


def _adapted(network: nn.Module, adapter: str) -> list[str]:
    modules = network.named_modules()
    return [name for name, module in modules if isinstance(module, LoraLayer) and module.adapter == adapter]
