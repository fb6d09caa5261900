"""Which layers OSEDiff adapts, and its weight file written: what TRQ trains becomes an osediff.pkl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qartsr_lib.backbones.lora import LoraLayer
from qartsr_lib.backbones.osediff_checkpoint import EXTRA
from qartsr_lib.base.files import write_atomically


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
    content: dict[str, Any] = {"vae_lora_encoder_modules": _listed(vae, "default_encoder")}
    for short in ("encoder", "decoder", "others"):
        content[f"unet_lora_{short}_modules"] = _listed(unet, f"default_{short}")
    content["rank_unet"], content["rank_vae"] = _rank(unet), _rank(vae)
    content["state_dict_unet"] = _chosen(unet, ("lora", "conv_in"))
    content["state_dict_vae"] = _chosen(vae, ("lora",))
    content[EXTRA] = dict(extra)
    return write_atomically(path, lambda temporary: torch.save(content, temporary))


def _listed(network: nn.Module, adapter: str) -> list[str]:
    modules = network.named_modules()
    return [name for name, module in modules if isinstance(module, LoraLayer) and module.adapter == adapter]


def _rank(network: nn.Module) -> int:
    layer = next(module for module in network.modules() if isinstance(module, LoraLayer))
    return int(layer.lora_A[layer.adapter].weight.shape[0])


def _chosen(network: nn.Module, words: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = network.state_dict()
    return {key: value.float().cpu() for key, value in state.items() if any(word in key for word in words)}
