"""The networks of Stable Diffusion 2.1-base by their published configurations: full size without any file.

Source: unet/config.json, vae/config.json and scheduler/scheduler_config.json of stable-diffusion-2-1-base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

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
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}

PROMPT_TOKENS = 77


def build_unet(config: Mapping[str, object] = UNET_CONFIG, device: str = "cpu") -> UNet2DConditionModel:
    """An untrained UNet on (N, 4, h, w); on the device "meta" it has shapes and no memory."""
    with torch.device(device):
        return UNet2DConditionModel(**config)


def build_vae(config: Mapping[str, object] = VAE_CONFIG, device: str = "cpu") -> AutoencoderKL:
    """An untrained VAE, (N, 3, 8h, 8w) <-> (N, 4, h, w); on the device "meta" without memory."""
    with torch.device(device):
        return AutoencoderKL(**config)


@torch.no_grad()
def fill_randomly_(network: nn.Module, device: str = "cpu", seed: int = 0) -> nn.Module:
    """Give a network of the meta device random weights that keep the size of what flows through.

    Weights are uniform with variance 1 / fan-in, normalizations the identity, biases zero. This is
    for measuring time and memory, which do not depend on the values.
    """
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.uniform_(-1, 1, generator=generator).mul_((3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)
    return network
