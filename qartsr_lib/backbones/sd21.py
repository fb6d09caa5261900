"""Stable Diffusion 2.1-base in diffusers' terms: the UNet and VAE of OSEDiff as data, without weights.

The values of the published `unet/config.json` and `vae/config.json`, where they differ from diffusers'
defaults or decide a shape. Together 949,564,587 parameters: UNet 865,910,724, encoder with
quant_conv 34,163,664, decoder with post_quant_conv 49,490,199.
"""

from __future__ import annotations

#: UNet2DConditionModel: latents (N, 4, h, w), text (N, 77, 1024).
UNET_CONFIG = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # diffusers reads this as the number of heads, of 64 channels each
    "dual_cross_attention": False,
    "use_linear_projection": True,
}

#: AutoencoderKL: images (N, 3, 8h, 8w) <-> latents (N, 4, h, w).
VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
