"""A tiny random backbone with every module type of the real ones, for the quantization tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.deploy.packed_file import save_packed
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.checkpoint import save_quantized


def tiny_backbone(timestep: int = 1, seed: int = 0, width: int = 8) -> OneStepSR:
    """Convolutions, self- and cross-attention, linear layers, VAE middle attention; eval, channels_last."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(width, width),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, width),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=4,
    )
    backbone = OneStepSR("tiny", timestep, vae, unet, torch.randn(1, 3, 6))
    return backbone.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def saved_both_ways(bits: str, size: int, folder: Path) -> None:
    """The embedded backbone under MaxMin, as the folder `q` and packed as `model.safetensors`."""
    model = METHODS.get("maxmin").build(load_backbone("embedded", 1), bits, [torch.rand(1, 3, size, size)]).backbone
    save_quantized(model, folder / "q")
    save_packed(model, folder / "model.safetensors")


def lq_images(count: int = 2, size: int = 8, seed: int = 1) -> list[torch.Tensor]:
    """Random LQ images (1, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, size, size, generator=generator) for _ in range(count)]
