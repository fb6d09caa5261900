"""OSEDiff's training (arXiv:2406.08177, L_data and L_reg, and its released train_osediff.py): networks and losses.

The networks share the base model's frozen weights: one copy of them in memory. The generator is trained on OSEDiff's
losses, or by the cheaper distillation of a trained OSEDiff. Both have `decodes` (the generator has to decode),
`regularizer` (a second network that learns along, or None) and `loss`, the generator's, with its terms for the record.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.backbones.osediff_checkpoint import attach_, unet_targets, vae_targets
from qartsr_lib.backbones.schedule import NUM_STEPS, clean
from qartsr_lib.training.embedded.stages import keep_float32, noisy_latents
from qartsr_lib.training.finetuning.losses import ImageLoss

RANK = 4
GUIDANCE = 7.5
VSD_INDICES = (20, 980)  # drawn from this range, end excluded
_SMALLEST_WEIGHT = 1e-4  # the released code divides by zero where z_H meets the frozen model's estimate

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = tuple[torch.Tensor, dict[str, float]]


class Generator(nn.Module):
    """What is trained: LoRA on the UNet and the VAE's encoder, and the UNet's whole conv_in.

    `unet` and `vae`, the frozen base model, are not changed; `decodes`: whether `forward` decodes the latent as well.
    """

    def __init__(
        self, unet: nn.Module, vae: nn.Module, timestep: int, prompt: torch.Tensor, decodes: bool, seed: int = 0
    ) -> None:
        super().__init__()
        unet, vae = shared(unet), shared(vae)
        attach_(unet, unet_targets(unet), RANK, seed)
        attach_(vae, vae_targets(vae), RANK, seed + 1)
        first = unet.conv_in.base_layer
        for name, parameter in list(first.named_parameters()):
            setattr(first, name, nn.Parameter(parameter.detach().clone()))
        self.model, self.decodes = OneStepSR("osediff", timestep, vae, unet, prompt), decodes
        _train_only(unet, ("lora_", "conv_in."))
        _train_only(vae, ("lora_",))
        keep_float32(unet.conv_out)  # Eq. (6) amplifies the rounding of eps and of z_L
        keep_float32(vae.quant_conv)

    def forward(self, upscaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, 3, H, W) in [0, 1] -> z_H (N, 4, H/8, W/8) and, if it decodes, the image, clamped to [0, 1]."""
        z_l = self.model.encode(upscaled).float()
        z_h = self.model.to_z_h(z_l, self.model.predict_noise(z_l).float())
        return z_h, self.model.decode(z_h).float().clamp(0, 1) if self.decodes else None


class Regularizer(nn.Module):
    """VSD's second network: the base UNet, weights shared, with a LoRA that learns the distribution of z_H.

    `kind` is one of config.REGULARIZERS.
    """

    def __init__(self, unet: nn.Module, seed: int = 0, kind: str = "paper") -> None:
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


def seeded(*parts: int) -> torch.Generator:
    """Random numbers of one step, determined by all `parts` and, being made on the CPU, the same on every device."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(mixed)


class OSEDiffLosses:
    """L = MSE + 2 LPIPS (the image loss) + VSD: what OSEDiff is trained on.

    Args:
        frozen: the base UNet.
        prompt, negative: text embeddings (1, tokens, dim); `frozen` is guided away from the second.
    """

    decodes = True
    teacher_sha256 = ""

    def __init__(
        self,
        image_loss: ImageLoss,
        frozen: nn.Module,
        prompt: torch.Tensor,
        negative: torch.Tensor,
        seed: int = 0,
        regularizer: str = "paper",
    ) -> None:
        self.image_loss, self.frozen, self.prompt, self.negative = image_loss, frozen, prompt, negative
        self.regularizer: nn.Module = Regularizer(frozen, seed, regularizer)

    def loss(self, batch: Batch, z_h: torch.Tensor, image: torch.Tensor, generator: torch.Generator) -> Loss:
        data, vsd = self.image_loss(image, batch[0]), self.vsd(z_h, generator)
        return data + vsd, {"image": data.item(), "vsd": vsd.item()}

    def vsd(self, z_h: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A term whose gradient by z_H is 2 g / numel, g = (x0 of the regularizer - x0 of the frozen model) / w.

        w is the mean distance of z_H to the latter, per image. All of it is in the space of latents.
        """
        with torch.no_grad():
            z = z_h.detach()
            noisy, _, index = noisy_latents(z, *VSD_INDICES, generator)
            learned = clean(noisy, self.regularizer(noisy, index, self.prompt), index)
            guided = clean(noisy, self._guided(noisy, index), index)
            weight = (z - guided).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST_WEIGHT)
            target = z - (learned - guided) / weight
        return F.mse_loss(z_h, target)

    def _guided(self, noisy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance of the frozen UNet; one pass after the other, to need less memory."""
        wanted, unwanted = (
            self.frozen(noisy, index, text.expand(len(noisy), -1, -1)).sample.float()
            for text in (self.prompt, self.negative)
        )
        return unwanted + GUIDANCE * (wanted - unwanted)

    def regularizer_loss(self, network: nn.Module, z_h: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The diffusion loss by which the regularizer follows the generator; `network` is it, as prepared."""
        noisy, eps, index = noisy_latents(z_h.detach(), 0, NUM_STEPS, generator)
        return F.mse_loss(network(noisy, index, self.prompt), eps)


class Distillation:
    """MSE of z_H to that of a frozen teacher: no decoder, no LPIPS, no second UNet.

    This is *not* OSEDiff's training: the student can become as good as its teacher, and no better.

    Args:
        teacher: upscaled image -> z_H.
        teacher_sha256: hash of its weights; "" for objectives without one.
    """

    decodes = False
    regularizer = None

    def __init__(self, teacher: Callable[[torch.Tensor], torch.Tensor], teacher_sha256: str) -> None:
        self.teacher, self.teacher_sha256 = teacher, teacher_sha256

    def loss(self, batch: Batch, z_h: torch.Tensor, image: None, generator: torch.Generator) -> Loss:
        with torch.no_grad():
            target = self.teacher(batch[1]).float()
        loss = F.mse_loss(z_h, target)
        return loss, {"latent": loss.item()}


Objective = OSEDiffLosses | Distillation
