"""OSEDiff's LoRA (arXiv:2106.09685), W' = W + (alpha / r) B A, and its file: read, merged, trained, written.

`state_dict_unet` and `state_dict_vae` of osediff.pkl hold LoRA factors, named as the library PEFT names them, and the
retrained `conv_in` of the UNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qartsr_lib.backbones.osediff_files import load_tensors, named_tensors, warn_of_coarse
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically

RELEASED_TIMESTEP = 1000
PEFT_ALPHA = 8.0  # PEFT's default; it stands in no file
EXTRA = "qartsr"  # our own entry beside the released ones, which OSEDiff's loader does not look at
_TENSORS = {"unet": "state_dict_unet", "vae": "state_dict_vae"}
_LISTS = [f"unet_lora_{part}_modules" for part in ("encoder", "decoder", "others")]  # of layers, which keys name too
_KNOWN = {"rank_unet", "rank_vae", "vae_lora_encoder_modules", EXTRA, *_LISTS, *_TENSORS.values()}
_LORA_KEY = re.compile(r"(?P<layer>.+)\.lora_[AB]\.(?P<adapter>[^.]+)\.weight")
_AGAIN = "get the file again"
_BASE = "use the base that the file was trained on, Stable Diffusion 2.1-base"


@dataclass(frozen=True)
class Checkpoint:
    """A file's content, not yet checked against a network."""

    path: Path
    tensors: Mapping[str, Mapping[str, torch.Tensor]]  # of "unet" and "vae", by the file's keys; float32
    ranks: Mapping[str, int]  # of their LoRA
    timestep: int  # label T it was trained at; 1000 unless the file says otherwise

    @torch.no_grad()
    def apply_(self, unet: nn.Module, vae: nn.Module) -> None:
        """Replace and merge into the base model's networks, in place; a QartsrError names a key that does not fit."""
        for name, network in (("unet", unet), ("vae", vae)):
            tensors, parameters = self.tensors[name], dict(network.named_parameters())
            replaced, adapters = self._sorted(name, parameters)
            for target, key in replaced.items():
                parameters[target].copy_(tensors[key])
            for target, (a, b) in adapters.items():
                merge_(parameters[target], tensors[a], tensors[b])

    def _sorted(
        self, name: str, parameters: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        """Parameter -> key of what replaces it, parameter -> keys of its LoRA factors; all are there and fit."""
        tensors, rank = self.tensors[name], self.ranks[name]
        replaced, adapters, wanted = {}, {}, {}
        for key in tensors:
            match = _LORA_KEY.fullmatch(key)
            target = f"{match['layer']}.weight" if match else key.replace(".base_layer.", ".")
            if target not in parameters:
                raise QartsrError(f"{self.path}: {key} is in no layer of the base model's {name}; {_BASE}")
            shape = tuple(parameters[target].shape)
            if not match:
                replaced[target], wanted[key] = key, shape
                continue
            a, b = (f"{match['layer']}.lora_{factor}.{match['adapter']}.weight" for factor in "AB")
            if adapters.setdefault(target, (a, b)) != (a, b):
                raise QartsrError(f"{self.path}: {target} has more than one adapter ({key}); one per layer is known")
            wanted |= {a: (rank, *shape[1:]), b: (shape[0], rank, *(1,) * len(shape[2:]))}
        for kind in ("weight", "bias") if name == "unet" else ():
            wanted.setdefault(replaced.get(f"conv_in.{kind}", f"conv_in.base_layer.{kind}"), ())
        for key, shape in wanted.items():
            if key not in tensors:
                raise QartsrError(f"{self.path}: {key} is missing; {_AGAIN}")
            if tuple(tensors[key].shape) != shape:
                raise QartsrError(
                    f"{self.path}: {key} is {tuple(tensors[key].shape)} in the file, but for rank {rank} and the base "
                    f"model's {name} it has to be {shape}; {_BASE}"
                )
        return replaced, adapters


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file.

    Raises:
        QartsrError: the file is missing, damaged, would run code, or has an entry that is unknown or damaged.
    """
    path = Path(path)
    content = load_tensors(path)
    if not isinstance(content, dict) or not set(content) & set(_TENSORS.values()):
        raise QartsrError(f"{path}: holds no entry state_dict_unet; name an osediff.pkl")
    for entry in content:
        if entry not in _KNOWN:
            raise QartsrError(f"{path}: unknown entry {entry!r}; name an unmodified osediff.pkl")
    tensors = {name: _tensors(path, name, content) for name in _TENSORS}
    ranks = {}
    for name, found in tensors.items():
        factors = [len(value) for key, value in found.items() if ".lora_A." in key]
        ranks[name] = content.get(f"rank_{name}", factors[0] if factors else 0)
    extra = content.get(EXTRA, {})
    timestep = extra.get("timestep", RELEASED_TIMESTEP) if isinstance(extra, dict) else None
    if not isinstance(timestep, int):
        raise QartsrError(f"{path}: entry {EXTRA!r} is damaged; {_AGAIN}")
    return Checkpoint(path, tensors, ranks, timestep)


def _tensors(path: Path, name: str, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a network, by their names in it."""
    entry = _TENSORS[name]
    if entry not in content:
        raise QartsrError(f"{path}: entry {entry!r} is missing; {_AGAIN}")
    found = content[entry]
    if not isinstance(found, dict):
        raise QartsrError(f"{path}: entry {entry!r} holds no tensors; {_AGAIN}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise QartsrError(f"{path}: {entry}[{key!r}] is no tensor; {_AGAIN}")
    warn_of_coarse(path, {value.dtype for value in found.values()})
    return named_tensors(path, found)


@torch.no_grad()
def merge_(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add (alpha / r) B A to `weight`, (out, in, ...), in place; `a` is (r, in, ...), `b` (out, r, ...)."""
    update = PEFT_ALPHA / len(a) * (b.float().flatten(1) @ a.float().flatten(1))
    weight.add_(update.view(weight.shape).to(weight))


class LoraLayer(nn.Module):
    """nn.Linear or nn.Conv2d (groups = 1) with a low-rank branch, base(x) + (alpha / r) B(A(x)), named as by PEFT.

    A starts normal with standard deviation 1 / r, B at zero, so that training starts from the base.
    """

    def __init__(self, base: nn.Module, adapter: str, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        if isinstance(base, nn.Conv2d):
            shape = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
            down = nn.Conv2d(base.in_channels, rank, base.kernel_size, **shape, bias=False)
            up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            down = nn.Linear(base.in_features, rank, bias=False)
            up = nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            down.weight.copy_(torch.randn(down.weight.shape, generator=generator) / rank)
            up.weight.zero_()
        self.base_layer, self.adapter, self.scale = base, adapter, PEFT_ALPHA / rank
        self.lora_A, self.lora_B = nn.ModuleDict({adapter: down}), nn.ModuleDict({adapter: up})
        self.to(base.weight.device)

    def forward(self, x: torch.Tensor, *ignored: object) -> torch.Tensor:
        """As the base layer; further positional arguments (diffusers passes a scale) are not used."""
        return self.base_layer(x) + self.scale * self.lora_B[self.adapter](self.lora_A[self.adapter](x))


def attach_(network: nn.Module, targets: Mapping[str, str], rank: int, seed: int = 0) -> list[LoraLayer]:
    """Give layers a low-rank branch, in place; returns them in the order of `targets` (layer -> name of adapter)."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for name, adapter in targets.items():
        layers.append(LoraLayer(network.get_submodule(name), adapter, rank, generator))
        network.set_submodule(name, layers[-1])
    return layers


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
    """Write networks adapted by the targets above in the layout of osediff.pkl; `extra` holds at least the timestep."""
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
