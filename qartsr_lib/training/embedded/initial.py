"""A head start for the VAE: its encoder begins as a 4x4 block cosine transform, its decoder as block colours.

From a random start, training stays for hundreds of steps on a plateau without colour. A convolutional VAE can hold a
linear transform, because silu(x) - silu(-x) = x: each coefficient travels as the pair (+c, -c) to the last
normalization, and the last convolution takes the difference (up to scale and offset: the normalization scales, and
biases keep their random start).
"""

from __future__ import annotations

import math
from itertools import product

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

BLOCK = 4
#: Rows: Y, Cb, Cr from RGB (ITU-R BT.601, signals without offset).
_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
_DC_WEIGHT, _AC_WEIGHT = 0.25, 1.0  # block means vary about ten times as much as the other coefficients
_OUTPUT_GAIN = 0.3  # about the spread of image values in [-1, 1] for a normalized signal
_POSTERIOR_LOGVAR = -6.0  # standard deviation 0.05: hardly any sampling noise at first


def block_transform(channels: int) -> torch.Tensor:
    """The first basis functions of the 4x4 cosine transform: (channels, 3, 4, 4), block means of Y, Cb, Cr first.

    The others are luminance in order of rising frequency, at most 15.
    """
    frequencies = sorted(product(range(BLOCK), repeat=2), key=lambda uv: (sum(uv), max(uv), uv))
    kinds = [(0, (0, 0)), (1, (0, 0)), (2, (0, 0))] + [(0, uv) for uv in frequencies[1:]]
    basis = torch.empty(channels, 3, BLOCK, BLOCK)
    for row, (component, (u, v)) in enumerate(kinds[:channels]):
        weight = _AC_WEIGHT if u or v else _DC_WEIGHT
        basis[row] = weight * _YCBCR[component].view(3, 1, 1) * torch.outer(_cosine(u), _cosine(v))
    return basis


@torch.no_grad()
def start_as_block_transform(vae: AutoencoderKL) -> None:
    """Overwrite the initial weights of a three-level VAE (factor 4, at least 2 x latent channels wide) in place."""
    latents = vae.config.latent_channels
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)  # every residual block starts as its shortcut
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut, min(module.in_channels, module.out_channels))
    _start_encoder(vae.encoder, block_transform(latents))
    _pass_on(vae.quant_conv, latents)
    vae.quant_conv.weight[latents:].mul_(0.1)
    vae.quant_conv.bias[latents:].fill_(_POSTERIOR_LOGVAR)
    _pass_on(vae.post_quant_conv, latents)
    _start_decoder(vae.decoder, latents)


def _start_encoder(encoder: nn.Module, basis: torch.Tensor) -> None:
    latents = len(basis)
    _pass_on(encoder.conv_in, 3)
    gather, combine = (encoder.down_blocks[level].downsamplers[0].conv for level in (0, 1))
    gather.weight[:12].zero_()
    combine.weight[: 2 * latents].zero_()
    for row, column in product(range(2), repeat=2):
        for colour in range(3):
            tap = 3 * (2 * row + column) + colour  # pixel (row, column) of a 2x2 block
            gather.weight[tap, colour, row, column] = 1.0
            for upper, left in product(range(2), repeat=2):
                weight = basis[:, colour, 2 * upper + row, 2 * left + column]
                combine.weight[:latents, tap, upper, left] = weight
                combine.weight[latents : 2 * latents, tap, upper, left] = -weight
    _difference(encoder.conv_out, latents, 1.0)


def _start_decoder(decoder: nn.Module, latents: int) -> None:
    decoder.conv_in.weight[:6].zero_()
    to_rgb = torch.linalg.inv(_YCBCR)
    centre = decoder.conv_in.weight[:, :, 1, 1]
    centre[:3, :3], centre[3:6, :3] = to_rgb, -to_rgb
    decoder.conv_in.bias[:6].zero_()
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or []:
            _pass_on(upsampler.conv, 6)
    _difference(decoder.conv_out, 3, _OUTPUT_GAIN)


def _pass_on(conv: nn.Conv2d, channels: int) -> None:
    """The first `channels` outputs become the first `channels` inputs."""
    middle = tuple(side // 2 for side in conv.kernel_size)
    conv.weight[:channels].zero_()
    conv.weight[range(channels), range(channels), middle[0], middle[1]] = 1.0
    conv.bias[:channels].zero_()


def _difference(conv: nn.Conv2d, outputs: int, gain: float) -> None:
    """Output i becomes gain x (input i - input (i + outputs))."""
    conv.weight[:outputs].zero_()
    conv.bias[:outputs].zero_()
    for index in range(outputs):
        conv.weight[index, index, 1, 1] = gain
        conv.weight[index, index + outputs, 1, 1] = -gain


def _cosine(frequency: int) -> torch.Tensor:
    """Row `frequency` of the orthonormal cosine transform of length 4."""
    positions = (torch.arange(BLOCK) + 0.5) * math.pi * frequency / BLOCK
    return torch.cos(positions) * math.sqrt((2.0 if frequency else 1.0) / BLOCK)
