"""The networks of Stable Diffusion 2.1-base by their published configurations: full size without any file.

Source: unet/config.json, vae/config.json and scheduler/scheduler_config.json of stable-diffusion-2-1-base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from qartsr_lib.backbones import schedule

UNET_CONFIG = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),  # the numbers of heads, whatever the name says; 64 channels each
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}

VAE_CONFIG = {
    "sample_size": 768,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "scaling_factor": 0.18215,
}

#: What Eq. (6) rests on; a base model with another schedule is not the one OSEDiff was trained from.
SCHEDULER_CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": schedule.BETA_START,
    "beta_end": schedule.BETA_END,
    "num_train_timesteps": schedule.NUM_STEPS,
    "prediction_type": "epsilon",
}

PROMPT_TOKENS = 77


def build_unet(config: Mapping[str, object] = UNET_CONFIG, device: str = "cpu") -> UNet2DConditionModel:
    """An untrained UNet on (N, 4, h, w); on the device "meta" without memory."""
    with torch.device(device):
        return UNet2DConditionModel(**config)


def build_vae(config: Mapping[str, object] = VAE_CONFIG, device: str = "cpu") -> AutoencoderKL:
    """An untrained VAE, (N, 3, 8h, 8w) <-> (N, 4, h, w); on the device "meta" without memory."""
    with torch.device(device):
        return AutoencoderKL(**config)
