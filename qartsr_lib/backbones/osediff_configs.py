"""The networks of Stable Diffusion 2.1-base by their published config.json files: full size without any file.

What is not named here is diffusers' default there, too.
"""

from __future__ import annotations

from qartsr_lib.backbones import schedule

UNET_CONFIG = {
    "sample_size": 64,
    "attention_head_dim": (5, 10, 20, 20),  # the numbers of heads, whatever the name says; 64 channels each
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE_CONFIG = {
    "sample_size": 768,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
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
