"""Networks to count, in full size and without values: built on the meta device, which takes no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qartsr_lib.backbones import embedded, osediff_configs
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError

OUTPUT_SIZE = 512  # pixels; "Ops are computed with output size 512x512" (the paper's Table 2)
_ANY_TIMESTEP = 1  # counts do not depend on it


def osediff() -> OneStepSR:
    """OSEDiff with merged LoRA: UNet and VAE of Stable Diffusion 2.1-base, a constant prompt embedding."""
    unet, vae = osediff_configs.build_unet(device="meta"), osediff_configs.build_vae(device="meta")
    prompt = torch.empty(1, osediff_configs.PROMPT_TOKENS, unet.config.cross_attention_dim)
    return OneStepSR("OSEDiff", _ANY_TIMESTEP, vae, unet, prompt)


def embedded_model() -> OneStepSR:
    """The embedded backbones; their recipes share one architecture."""
    prompt = torch.empty(1, embedded.PROMPT_TOKENS, embedded.UNET_CONFIG["cross_attention_dim"])
    return OneStepSR("embedded", _ANY_TIMESTEP, embedded.build_vae(), embedded.build_unet(), prompt)


#: Name in tables -> builder.
MODELS: dict[str, Callable[[], OneStepSR]] = {"OSEDiff": osediff, "embedded": embedded_model}


def meta_model(name: str) -> OneStepSR:
    """A network of MODELS on the meta device.

    Raises:
        QartsrError: unknown name.
    """
    if name not in MODELS:
        raise QartsrError(f"unknown network {name!r} to count (known: {', '.join(MODELS)})")
    with torch.device("meta"):
        return MODELS[name]().eval().requires_grad_(False)
