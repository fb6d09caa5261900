"""The networks of OSEDiff's training, which share the base model's frozen weights: one copy of them in memory."""

from __future__ import annotations

import copy

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.backbones.osediff_checkpoint import attach_, unet_targets, vae_targets
from qartsr_lib.training.embedded.stages import keep_float32
from qartsr_lib.training.trq.config import REGULARIZERS

RANK = 4


class Generator(nn.Module):
    """What is trained: LoRA on the UNet and the VAE's encoder, and the UNet's whole conv_in.

    `unet` and `vae`, the frozen base model, are not changed; `decodes`: whether `forward` decodes the latent as well.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        timestep: int,
        prompt_embedding: torch.Tensor,
        decodes: bool,
        seed: int = 0,
    ) -> None:
        super().__init__()
        unet, vae = shared(unet), shared(vae)
        attach_(unet, unet_targets(unet), RANK, seed)
        attach_(vae, vae_targets(vae), RANK, seed + 1)
        first = unet.conv_in.base_layer
        for name, parameter in list(first.named_parameters()):
            setattr(first, name, nn.Parameter(parameter.detach().clone()))
        self.model, self.decodes = OneStepSR("osediff", timestep, vae, unet, prompt_embedding), decodes
        _train_only(unet, ("lora_", "conv_in."))
        _train_only(vae, ("lora_",))
        keep_float32(unet.conv_out)  # Eq. (6) amplifies the rounding of eps and of z_L
        keep_float32(vae.quant_conv)

    def forward(self, upscaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, 3, H, W) in [0, 1] -> z_H (N, 4, H/8, W/8) and, if it decodes, the image, clamped to [0, 1]."""
        z_l = self.model.encode(upscaled).float()
        z_h = self.model.to_z_h(z_l, self.model.predict_noise(z_l).float())
        return z_h, self.model.decode(z_h).float().clamp(0, 1) if self.decodes else None

    def enable_gradient_checkpointing(self) -> None:
        """Less memory, a third more time."""
        self.model.unet.enable_gradient_checkpointing()
        self.model.vae.enable_gradient_checkpointing()


class Regularizer(nn.Module):
    """VSD's second network: the base UNet, weights shared, with a LoRA that learns the distribution of z_H.

    `kind` is one of REGULARIZERS.
    """

    def __init__(self, unet: UNet2DConditionModel, seed: int = 0, kind: str = REGULARIZERS[0]) -> None:
        super().__init__()
        self.unet, targets = shared(unet), unet_targets(unet)
        if kind == "released":
            targets = {name: adapter for name, adapter in targets.items() if adapter == "default_others"}
        attach_(self.unet, targets, RANK, seed)
        _train_only(self.unet, ("lora_",))

    def forward(self, noisy: torch.Tensor, index: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """(N, 4, h, w) at the schedule's indices (N,) -> noise of the same shape."""
        return self.unet(noisy, index, prompt.expand(len(noisy), -1, -1)).sample.float()


def shared(network: nn.Module) -> nn.Module:
    """Another module tree on the same Parameter objects."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of a network, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _train_only(network: nn.Module, words: tuple[str, ...]) -> None:
    """Gradients for parameters with one of `words` in their name; the shared ones are frozen already."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(word in name for word in words))
