"""What every backbone is: an OSEDiff-shaped one-step SR network, and its registry.

QArtSR section 3.1, OSEDiff (arXiv:2406.08177): bicubic-upscaled LQ image -> VAE encoder -> z_L -> one UNet call at
timestep T -> Eq. (6) -> z_H -> VAE decoder -> image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from qartsr_lib.backbones import schedule
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.provenance import tensors_sha256
from qartsr_lib.base.registry import Registry
from qartsr_lib.images.image import pad_to_multiple, upscale_bicubic

#: Name -> function(timestep) -> OneStepSR. A new backbone is one file in this folder. The timestep has a default,
#: and keyword-only parameters are the backbone's own options, such as files that only it needs.
BACKBONES: Registry[Callable[..., OneStepSR]] = Registry("backbone", __package__)
#: Name -> subclass of OneStepSR with `assemble`, so that a packed model can be built without the backbone's files.
ARCHITECTURES: Registry[type[OneStepSR]] = Registry("architecture", __package__)
_BLOCKS = (
    *(f"vae.encoder.{name}" for name in ("conv_in", "down_blocks", "mid_block", "conv_out")),
    "vae.quant_conv",
    *(f"unet.{name}" for name in ("time_embedding", "conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out")),
    "vae.post_quant_conv",
    *(f"vae.decoder.{name}" for name in ("conv_in", "mid_block", "up_blocks", "conv_out")),
)


@dataclass(frozen=True)
class Stages:
    """The staged outputs of one forward pass (the columns of the paper's Fig. 7)."""

    z_l: torch.Tensor  # latent of the upscaled LQ image, (N, C, h, w) like the next two
    eps: torch.Tensor  # predicted noise
    z_h: torch.Tensor  # estimated HR latent
    image: torch.Tensor  # decoded, (N, 3, H, W), nominally in [0, 1], not clamped


class OneStepSR(nn.Module):
    """A x4 one-step diffusion SR model made of diffusers' AutoencoderKL and UNet2DConditionModel.

    Args:
        timestep: label T, 1..1000 (index T - 1).
        vae: with `config.scaling_factor` set; the posterior's mode is used, never a sample.
        prompt_embedding: (1, tokens, dim), constant.
        scaled: give the UNet sqrt(alpha_T) z_L, so that Eq. (6) becomes z_H = z_L - sqrt((1 - alpha_T) / alpha_T) eps.
        weights_sha256: hash of the weight files, for run records, caches and files' stamps; `load_backbone` takes one
            of all tensors where there is none.
    """

    factor = 4
    colour_fix = "none"
    """The command line's default, a name in `colour_fix.COLOUR_FIXES`; tables never use one."""
    eight_bit_layers: tuple[str, ...] = (
        "unet.time_embedding.linear_1",
        "unet.conv_out",
        "vae.quant_conv",
        "vae.post_quant_conv",
        "vae.encoder.conv_out",
        "vae.decoder.conv_out",
    )

    def __init__(
        self,
        name: str,
        timestep: int,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompt_embedding: torch.Tensor,
        *,
        scaled: bool = False,
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        self.name, self.timestep, self.scaled, self.weights_sha256 = name, timestep, scaled, weights_sha256
        self.loaded_sha256 = ""  # of a loader whose result others change: `network_sha256` behind it
        self.index = schedule.timestep_index(timestep)
        self.vae, self.unet = vae, unet
        self.register_buffer("prompt_embedding", prompt_embedding)

    @classmethod
    def assemble(cls, name: str, timestep: int, **parts) -> OneStepSR:
        """A network from its parts: vae, unet, prompt_embedding and scaled."""
        return cls(name, timestep, **parts)

    @property
    def multiple(self) -> int:
        """Both sides of the upscaled image must divide by this (VAE times UNet down-sampling)."""
        return 2 ** (len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2)

    def encode(self, upscaled: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] -> z_L, (N, C, H/f, W/f)."""
        posterior = self.vae.encode(upscaled * 2.0 - 1.0).latent_dist
        return posterior.mode() * self.vae.config.scaling_factor

    def predict_noise(self, z_l: torch.Tensor) -> torch.Tensor:
        """One UNet call at the backbone's timestep: z_L -> eps, same shape."""
        prompt = self.prompt_embedding.expand(z_l.shape[0], -1, -1)
        return self.unet(self.unet_input(z_l), self.index, prompt).sample

    def unet_input(self, z_l: torch.Tensor) -> torch.Tensor:
        """z_L, in the scaled recipe sqrt(alpha_T) z_L."""
        return z_l * schedule.alpha(self.timestep) ** 0.5 if self.scaled else z_l

    def to_z_h(self, z_l: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """z_H by Eq. (6) of `unet_input`."""
        return schedule.estimate_z_h(self.unet_input(z_l), eps, self.timestep)

    def decode(self, z_h: torch.Tensor) -> torch.Tensor:
        """z_H -> (N, 3, H, W), nominally in [0, 1], not clamped."""
        return self.vae.decode(z_h / self.vae.config.scaling_factor).sample * 0.5 + 0.5

    def stages(self, upscaled: torch.Tensor) -> Stages:
        """All staged outputs for an upscaled image (N, 3, H, W) in [0, 1]; sides divide by `multiple`."""
        z_l = self.encode(upscaled)
        eps = self.predict_noise(z_l)
        z_h = self.to_z_h(z_l, eps)
        return Stages(z_l, eps, z_h, self.decode(z_h))

    def forward(self, upscaled: torch.Tensor) -> torch.Tensor:
        return self.stages(upscaled).image

    def prepare(self, lq: torch.Tensor) -> torch.Tensor:
        """LQ image (N, 3, h, w) in [0, 1] -> upscaled and reflect-padded network input."""
        return pad_to_multiple(upscale_bicubic(lq, self.factor), self.multiple).contiguous(
            memory_format=torch.channels_last
        )

    @torch.no_grad()
    def upscale(self, lq: torch.Tensor) -> torch.Tensor:
        """(1, 3, h, w) in [0, 1], any size -> (1, 3, 4h, 4w) in [0, 1]; padding is cropped, nothing rescaled."""
        height, width = lq.shape[-2] * self.factor, lq.shape[-1] * self.factor
        return self(self.prepare(lq))[..., :height, :width].clamp(0, 1)

    def blocks_in_order(self) -> list[tuple[str, nn.Module]]:
        """The blocks of per-module quantization, in inference order, by full name; every layer lies in exactly one."""
        blocks = []
        for name in _BLOCKS:
            block = self.get_submodule(name)
            several = isinstance(block, nn.ModuleList)
            blocks += [(f"{name}.{index}", one) for index, one in enumerate(block)] if several else [(name, block)]
        return blocks


ARCHITECTURES.register("one-step")(OneStepSR)


def parameter_count(network: nn.Module) -> int:
    """Numbers that `network` has as parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def own_options(name: str) -> list[str]:
    """The options of its own that a registered backbone has, see `BACKBONES`."""
    parameters = inspect.signature(BACKBONES.get(name)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def load_backbone(name: str, timestep: int | None, device: str | torch.device = "cpu", **options: object) -> OneStepSR:
    """Load a registered backbone for evaluation: float32, channels_last, gradients off.

    `timestep` is the label T, None for the backbone's default; `options` are its own, see `BACKBONES`. A QartsrError
    for an unknown backbone or option, or where there are no weights for this timestep.
    """
    if timestep is not None:
        schedule.timestep_index(timestep)  # a label outside the schedule is told before files are looked for
    load, known = BACKBONES.get(name), own_options(name)
    for option in options:
        if option not in known:
            raise QartsrError(
                f"--{option}: backbone {name!r} has no such option (its own: {', '.join(known) or 'none'})"
            )
    backbone = load(**options) if timestep is None else load(timestep, **options)
    if not backbone.weights_sha256 or _changed(backbone):
        backbone.weights_sha256 = network_sha256(backbone)  # else what other weights computed would be taken for theirs
    return backbone.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _changed(backbone: OneStepSR) -> bool:
    """Whether other weights than the loader's stand in it, whose hash it carries."""
    loaded = getattr(backbone, "loaded_sha256", "")
    return bool(loaded) and loaded != network_sha256(backbone)


def network_sha256(backbone: OneStepSR) -> str:
    """sha256 over all tensors and the latents' factor."""
    factor = {"scaling_factor": torch.tensor(backbone.vae.config.scaling_factor)}
    return tensors_sha256(backbone.state_dict() | factor)


#: Methods of OneStepSR, in order -> what they give.
STAGES = {
    "encode": "the encoder's latent (z_l)",
    "predict_noise": "the UNet's noise (eps)",
    "to_z_h": "the estimated latent (z_h)",
    "decode": "the decoded image",
}


def watch_(model: OneStepSR, weights: object) -> None:
    """Let `model`, loaded from `weights`, raise Diverged, in place, as soon as a stage's output is not finite.

    Codes know no NaN, and infinity is cut off with all that is out of range: at the end neither need be seen any more.
    """

    def watched(compute: Callable[..., torch.Tensor], what: str) -> Callable[..., torch.Tensor]:
        def checked(*inputs: torch.Tensor) -> torch.Tensor:
            output = compute(*inputs)
            if not output.isfinite().all():
                raise Diverged(
                    f"{what} is not finite (NaN or infinity); weights {weights}: use sound ones or more bits"
                )
            return output

        return checked

    for stage, what in STAGES.items():
        setattr(model, stage, watched(getattr(model, stage), what))


def shortcuts(full: OneStepSR) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The three ways from z_L to z_H that show what the UNet contributes."""
    return {
        "full": lambda z_l: full.to_z_h(z_l, full.predict_noise(z_l)),
        "no noise": lambda z_l: full.to_z_h(z_l, torch.zeros_like(z_l)),
        "identity": lambda z_l: z_l,
    }
