"""A tiny random pipeline of Stable Diffusion 2.1-base's shape on disk, and OSEDiff files in the exact key layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from qartsr_lib.backbones import osediff_configs as full

#: Fewer channels and nothing else: the same blocks, so the same layer names as at full size.
UNET_CONFIG = full.UNET_CONFIG | {
    "block_out_channels": (8, 8, 16, 16),
    "attention_head_dim": (1, 1, 2, 2),
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
VAE_CONFIG = full.VAE_CONFIG | {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2}

#: Written out by hand from the released file's rule, not taken from the code under test.
UNET_PATTERNS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj")


def tiny_networks(seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """UNet and VAE with random weights, normalizations and biases included."""
    torch.manual_seed(seed)
    unet, vae = UNet2DConditionModel(**UNET_CONFIG), AutoencoderKL(**VAE_CONFIG)
    with torch.no_grad():
        for parameter in (*unet.parameters(), *vae.parameters()):
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return unet.eval(), vae.eval()


def write_base(folder: Path, seed: int = 0, text_encoder: bool = True) -> Path:
    """A base model's folder in diffusers' layout."""
    unet, vae = tiny_networks(seed)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = full.SCHEDULER_CONFIG | {"_class_name": "DDPMScheduler", "clip_sample": False, "steps_offset": 1}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if text_encoder:
        _write_text_encoder(folder)
    return folder


def _write_text_encoder(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = "abcdefghijklmnopqrstuvwxyz,."
    words = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    described = special | {"pad_token": "!", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(described))
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def checkpoint(rank: int = 4, seed: int = 2) -> dict:
    """The content of an osediff.pkl for the tiny networks, keys as in the released file."""
    generator = torch.Generator().manual_seed(seed)
    unet, vae = tiny_networks()
    content: dict = {"vae_lora_encoder_modules": [], "rank_unet": rank, "rank_vae": rank}
    content |= {f"unet_lora_{part}_modules": [] for part in ("encoder", "decoder", "others")}
    content["state_dict_unet"], content["state_dict_vae"] = {}, {}
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(word in name for word in UNET_PATTERNS):
            part = "encoder" if "down_blocks" in name or "conv_in" in name else "others"
            part = "decoder" if "up_blocks" in name or "conv_out" in name else part
            content[f"unet_lora_{part}_modules"].append(name)
            content["state_dict_unet"] |= _factors(name, module, f"default_{part}", rank, generator)
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ("encoder" in name or name == "quant_conv"):
            content["vae_lora_encoder_modules"] += [name, name]  # the released list has duplicates
            content["state_dict_vae"] |= _factors(name, module, "default_encoder", rank, generator)
    for name, parameter in unet.conv_in.named_parameters():
        content["state_dict_unet"][f"conv_in.base_layer.{name}"] = torch.randn(parameter.shape, generator=generator)
    return content


def _factors(name: str, module: nn.Module, adapter: str, rank: int, generator: torch.Generator) -> dict:
    out, into, *kernel = module.weight.shape
    a = torch.randn(rank, into, *kernel, generator=generator) * (0.3 / module.weight[0].numel() ** 0.5)
    b = torch.randn(out, rank, *([1] * len(kernel)), generator=generator) * 0.3
    return {f"{name}.lora_A.{adapter}.weight": a, f"{name}.lora_B.{adapter}.weight": b}


def write_checkpoint(path: Path, content: dict | None = None) -> Path:
    """Save a checkpoint as the released one is."""
    torch.save(checkpoint() if content is None else content, path)
    return path


def write_weights(folder: Path) -> Path:
    """The default places in a folder of weights (QARTSR_WEIGHTS)."""
    write_base(folder / "stable-diffusion-2-1-base")
    (folder / "osediff").mkdir()
    write_checkpoint(folder / "osediff" / "osediff.pkl")
    return folder
