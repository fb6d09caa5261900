"""OSEDiff at inference: preprocessing, tiles, posterior, and the one UNet call.

Source: OSEDiff's released `test_osediff.py` and `osediff.py` (arXiv:2406.08177); DEVIATIONS.md lists what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from qartsr_lib.backbones.base import ARCHITECTURES, OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import from_uint8, pad_to_multiple, resize_bicubic, to_uint8
from qartsr_lib.images.tiling import blended

POSTERIORS = ("mode", "sample")


@dataclass(frozen=True)
class Inference:
    """How an image is taken through the networks; what has a longer side of at most `whole` is not cut into tiles."""

    tile: int = 96  # of the UNet in latent positions (8 pixels); a latent of tile x tile positions is not cut
    overlap: int = 32
    encoder_tile: int = 1024  # of the VAE's encoder, in pixels
    encoder_overlap: int = 128
    encoder_whole: int = 1088
    decoder_tile: int = 224  # of the VAE's decoder, in latent positions
    decoder_overlap: int = 32
    decoder_whole: int = 246
    posterior: str = "mode"  # z_L is the posterior's mode, or a "sample" (as in the released script)
    seed: int = 0  # of the sample; the same image always gets the same one
    smallest: int = 128  # low-quality images with a shorter side are enlarged to it first

    def __post_init__(self) -> None:
        if not isinstance(self.tile, int) or self.tile < 8:
            raise QartsrError(f"--tile {self.tile}: choose at least 8 latent positions, such as 96 (the default) or 64")
        if self.posterior not in POSTERIORS:
            raise QartsrError(f"posterior {self.posterior!r}: choose one of {', '.join(POSTERIORS)}")


@ARCHITECTURES.register("osediff")
class OSEDiff(OneStepSR):
    """OSEDiff on Stable Diffusion 2.1-base, LoRA merged and conv_in replaced: 949.6 M parameters."""

    colour_fix = "adain"

    def __init__(
        self,
        timestep: int,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompt_embedding: torch.Tensor,
        inference: Inference | None = None,
        weights_sha256: str = "",
    ) -> None:
        super().__init__("osediff", timestep, vae, unet, prompt_embedding, weights_sha256=weights_sha256)
        self.inference = inference or Inference()

    @classmethod
    def assemble(cls, name: str, timestep: int, *, scaled: bool = False, **parts) -> OSEDiff:
        """See OneStepSR.assemble; the name is always "osediff", and nothing is scaled."""
        return cls(timestep, **parts)

    @property
    def multiple(self) -> int:
        """Of the VAE alone: the UNet takes latents of any size, as in the released script."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, upscaled: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] -> z_L, (N, 4, H/8, W/8); images over `encoder_whole` in tiles.

        Every tile is normalized by its own statistics (GroupNorm), the whole image by its own.
        """
        how, scale = self.inference, Fraction(1, self.multiple)
        whole = max(upscaled.shape[-2:]) <= how.encoder_whole
        tile = max(upscaled.shape[-2:]) if whole else how.encoder_tile
        signed = upscaled * 2.0 - 1.0
        moments = blended(
            lambda part: self.vae.encode(part).latent_dist.parameters, signed, tile, how.encoder_overlap, scale
        )
        posterior = DiagonalGaussianDistribution(moments)
        generator = torch.Generator().manual_seed(how.seed)  # of the CPU, so that all devices draw the same
        z_l = posterior.sample(generator) if how.posterior == "sample" else posterior.mode()
        return z_l * self.vae.config.scaling_factor

    def predict_noise(self, z_l: torch.Tensor) -> torch.Tensor:
        """One UNet call per tile: z_L -> eps, same shape; tiles are blended in eps, before Eq. (6)."""
        height, width = z_l.shape[-2:]
        tile = self.inference.tile
        if height * width <= tile * tile:
            return super().predict_noise(z_l)
        tile = min(tile, height, width)
        return blended(super().predict_noise, z_l, tile, min(self.inference.overlap, tile // 2))

    def decode(self, z_h: torch.Tensor) -> torch.Tensor:
        """z_H -> (N, 3, H, W), nominally in [0, 1]; latents over `decoder_whole` in tiles, see `encode`."""
        how, longer = self.inference, max(z_h.shape[-2:])
        tile = longer if longer <= how.decoder_whole else how.decoder_tile
        return blended(super().decode, z_h, tile, how.decoder_overlap, Fraction(self.multiple))

    def prepare(self, lq: torch.Tensor) -> torch.Tensor:
        """LQ image (N, 3, h, w) in [0, 1] -> network input, as the released script makes it.

        Enlarged where a side is under `smallest`, upscaled four times by Pillow's bicubic filter in 8 bits, then padded
        by reflection to a multiple of 8 (the script rescales instead).
        """
        height, width = self.working_size(*lq.shape[-2:])
        if (height, width) != tuple(lq.shape[-2:]):
            lq = resize_as_pillow(lq, height, width)
        upscaled = resize_as_pillow(lq, height * self.factor, width * self.factor)
        return pad_to_multiple(upscaled, self.multiple).contiguous(memory_format=torch.channels_last)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Size to which an LQ image is brought: its own, or enlarged until its shorter side is `smallest`."""
        shorter, smallest = min(height, width), self.inference.smallest
        if shorter >= smallest:
            return height, width
        return height * smallest // shorter, width * smallest // shorter

    @torch.no_grad()
    def upscale(self, lq: torch.Tensor) -> torch.Tensor:
        """(1, 3, h, w) in [0, 1], any size -> (1, 3, 4h, 4w) in [0, 1]; small images are scaled back in the end."""
        height, width = (side * self.factor for side in self.working_size(*lq.shape[-2:]))
        image = self(self.prepare(lq))[..., :height, :width].clamp(0, 1)
        wanted = (lq.shape[-2] * self.factor, lq.shape[-1] * self.factor)
        return image if (height, width) == wanted else resize_bicubic(image, *wanted)


def resize_as_pillow(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(N, 3, h, w) in [0, 1] -> (N, 3, height, width) by Pillow's bicubic filter, rounded to 8-bit levels."""
    resized = [
        np.asarray(Image.fromarray(to_uint8(image[None])).resize((width, height), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.cat([from_uint8(array) for array in resized]).to(images)
