"""The stages that make the embedded backbones: VAE, noise-predicting UNet, shared warm-up, one run per recipe and T."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.backbones import schedule as noise
from qartsr_lib.backbones.base import OneStepSR, Stages
from qartsr_lib.backbones.embedded import RECIPES, build_prompt_embedding, build_unet, build_vae
from qartsr_lib.training.embedded.initial import start_as_block_transform
from qartsr_lib.training.embedded.loop import Crops, Schedule, train

LATENT_WEIGHT = 0.3  # on the distance of z_H to the latents that the decoder was made for; DEVIATIONS.md
KL_WEIGHT = 1e-4  # on the KL divergence per image value; keeps latents bounded, hardly blurs
State = Mapping[str, torch.Tensor]
Validate = Callable[[OneStepSR], dict[str, float]]


def train_vae(crops: Crops, schedule: Schedule, folder: Path, device: str) -> State:
    """Pretrain the VAE to reconstruct crops, a third of them upscaled LQ ones: L1 + KL_WEIGHT x KL, images in [-1, 1].

    The state has a `scaling_factor` as well, 1 / standard deviation of the HR latents.
    """
    torch.manual_seed(schedule.seed)
    vae = build_vae()
    start_as_block_transform(vae)
    vae.to(device, memory_format=torch.channels_last)
    third = schedule.batch_size // 3

    def batch(step: int) -> torch.Tensor:
        hr = crops.hr(schedule.batch_size, schedule.seed, step)
        _, upscaled = crops.pairs(third, schedule.seed, step)
        return _signed(torch.cat([upscaled, hr[third:]]))

    def loss(images: torch.Tensor, step: int) -> torch.Tensor:
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        kl = posterior.kl().float().sum() / images.numel()
        return F.l1_loss(decoded.float(), images) + KL_WEIGHT * kl

    train(vae, vae.parameters(), batch, loss, schedule, folder, "VAE")
    with torch.no_grad():
        latents = vae.encode(_signed(crops.hr(64, schedule.seed, schedule.steps)).to(device)).latent_dist.mode()
    return vae.state_dict() | {"scaling_factor": (1.0 / latents.std()).cpu()}


def train_prior(vae: State, crops: Crops, schedule: Schedule, folder: Path, device: str) -> State:
    """Pretrain the UNet as Stable Diffusion's is: predict the noise added to HR latents at a random t."""
    torch.manual_seed(schedule.seed)
    unet = build_unet()
    model = _beside_frozen_vae(unet, vae, device)

    def loss(hr: torch.Tensor, step: int) -> torch.Tensor:
        with torch.no_grad():
            latents = model.encode(hr).float()
        noisy, eps, index = noisy_latents(latents, 0, noise.NUM_STEPS, torch.Generator().manual_seed(step))
        prompt = model.prompt_embedding.expand(len(latents), -1, -1)
        return F.mse_loss(unet(noisy, index, prompt).sample.float(), eps)

    batch = partial(crops.hr, schedule.batch_size, schedule.seed)
    train(unet, unet.parameters(), batch, loss, schedule, folder, "initial UNet")
    return unet.state_dict()


def noisy_latents(
    z: torch.Tensor, low: int, high: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy z, noise, indices of the schedule, low <= t < high, one per latent); drawn on the CPU."""
    index = torch.randint(low, high, (len(z),), generator=generator).to(z.device)
    eps = torch.randn(z.shape, generator=generator).to(z)
    return noise.add_noise(z, eps, index), eps, index


def _beside_frozen_vae(unet: nn.Module, vae: State, device: str) -> OneStepSR:
    model = OneStepSR("start", 1000, build_vae(vae).eval().requires_grad_(False), unet, build_prompt_embedding())
    return model.to(device, memory_format=torch.channels_last)


class OutputGain(nn.Module):
    """conv_out times a constant (`noise_per_unit`), so that its weights train at one scale for every T."""

    def __init__(self, conv: nn.Conv2d, gain: float) -> None:
        super().__init__()
        self.conv, self.gain = conv, gain

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden) * self.gain

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The convolution with the factor multiplied into it."""
        self.conv.weight.mul_(self.gain)
        self.conv.bias.mul_(self.gain)
        return self.conv


def noise_per_unit(timestep: int) -> float:
    """The noise that moves a scaled recipe's z_H by one unit: 0.07 at T = 1000 and 34 at T = 1."""
    alpha = noise.alpha(timestep)
    return (alpha / (1.0 - alpha)) ** 0.5


def keep_float32(module: nn.Module) -> None:
    """Run `module` outside autocast: at T = 1000 Eq. (6) amplifies its rounding error 14.6 times."""
    forward = module.forward

    def float32_forward(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float())

    module.forward = float32_forward


def train_warm_up(vae: State, prior: State, crops: Crops, schedule: Schedule, folder: Path, device: str) -> State:
    """The scaled recipe's common start for all T: restore latents, at the paper's T in turn.

    conv_out starts at zero, so that every T starts from the VAE's identity, z_H = z_L. The loss is on latents, at a
    fifth of the cost of images. conv_out of the result predicts noise / `noise_per_unit(T)`.
    """
    unet = build_unet(prior)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    model = _beside_frozen_vae(unet, vae, device)

    def loss(pair: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        hr, upscaled = pair
        timestep = noise.PAPER_TIMESTEPS[step % len(noise.PAPER_TIMESTEPS)]
        with torch.no_grad():
            z_l, z_h = model.encode(torch.cat([upscaled, hr])).float().chunk(2)
        prompt = model.prompt_embedding.expand(len(z_l), -1, -1)
        unit_noise = unet(z_l * noise.alpha(timestep) ** 0.5, noise.timestep_index(timestep), prompt).sample
        return F.l1_loss(z_l - unit_noise.float(), z_h)

    batch = partial(crops.pairs, schedule.batch_size, schedule.seed)
    train(unet, unet.parameters(), batch, loss, schedule, folder, "scaled warm-up")
    return unet.state_dict()


def train_recipe(
    recipe: str,
    timestep: int,
    vae: State,
    start: State,
    validate: Validate | None,
    crops: Crops,
    schedule: Schedule,
    folder: Path,
    device: str,
) -> State:
    """What `recipe` trains for one T, from the VAE and the UNet's `start`."""
    kind = RECIPES[recipe]
    parts = build_vae(vae), build_unet(start), build_prompt_embedding()
    model = OneStepSR(recipe, timestep, *parts, scaled=kind.scaled).to(device, memory_format=torch.channels_last)
    train_one_step(model, crops, schedule, folder, validate, kind.trains_encoder)
    trained = ("unet.", "vae.encoder.", "vae.quant_conv.") if kind.trains_encoder else ("unet.",)
    return {key: value for key, value in model.state_dict().items() if key.startswith(trained)}


def train_one_step(
    model: OneStepSR,
    crops: Crops,
    schedule: Schedule,
    folder: Path,
    validate: Validate | None = None,
    trains_encoder: bool = True,
) -> None:
    """Train UNet and, if asked, encoder by `restoration_loss`, with latents of the VAE as it is at the start.

    With scaled input, the UNet's conv_out is taken to predict noise / `noise_per_unit(T)` at the start.
    """
    torch.manual_seed(schedule.seed)
    model.requires_grad_(False)
    pretrained = OneStepSR("pretrained", model.timestep, copy.deepcopy(model.vae), model.unet, model.prompt_embedding)
    parameters = list(model.unet.parameters())
    if model.scaled:
        model.unet.conv_out = OutputGain(model.unet.conv_out, noise_per_unit(model.timestep))
    if trains_encoder:
        parameters += [*model.vae.encoder.parameters(), *model.vae.quant_conv.parameters()]
    keep_float32(model.unet.conv_out)

    def loss(pair: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        hr, upscaled = pair
        with torch.no_grad():
            target = pretrained.encode(hr)
        return restoration_loss(model.stages(upscaled), hr, target)

    batch, label = partial(crops.pairs, schedule.batch_size, schedule.seed), f"{model.name} T={model.timestep}"
    train(model, parameters, batch, loss, schedule, folder, label, partial(validate, model) if validate else None)
    del model.unet.conv_out.forward  # back to the method of its class
    if model.scaled:
        model.unet.conv_out = model.unet.conv_out.folded()


def restoration_loss(stages: Stages, hr: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of image to `hr` + LATENT_WEIGHT x L1 of z_H to `target`, `hr`'s latent in the pretrained VAE.

    The second term plays the part of OSEDiff's VSD: the decoder's normalizations hide z_H's scale from the image.
    """
    return F.l1_loss(stages.image.float(), hr) + LATENT_WEIGHT * F.l1_loss(stages.z_h.float(), target.float())


def _signed(image: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [-1, 1], channels_last."""
    return (image * 2.0 - 1.0).contiguous(memory_format=torch.channels_last)
