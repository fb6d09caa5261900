"""Eq. (8) and its relatives: module loss, noise loss, and the image losses by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from qartsr_lib.registry import Registry

#: Image loss: (student's images, full-precision images), both (N, 3, H, W) nominally in [0, 1] -> scalar.
ImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: Name -> function(device) -> ImageLoss. The name stands in every row that was trained with it.
IMAGE_LOSSES: Registry[Callable[[torch.device], ImageLoss]] = Registry("image loss", "qartsr_lib.finetuning")

PERCEPTUAL_WEIGHT, SQUARED_WEIGHT = 2.0, 1.0
"""a1 and a2 of Eq. (8), with images in [-1, 1] as in OSEDiff (arXiv:2406.08177)."""
_SMALLEST = 1e-12


def normalized_mse(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """||M_q(x) - M_fp(x)||^2 of Eq. (8) over the variance of M_fp(x).

    Modules differ in scale by orders of magnitude; so divided, 1 means no better than a constant.
    """
    return F.mse_loss(student, target) / target.var().clamp(min=_SMALLEST)


class FeatureDistance(nn.Module):
    """A perceptual distance that needs no download: LPIPS's form on the features of a frozen VAE encoder.

    After each of the encoder's stages features are normalized to unit length over the channels, and
    the squared differences are averaged over positions and stages (LPIPS, arXiv:1801.03924, without
    learned weights). It is *not* LPIPS and never called so.

    Args:
        encoder: of an AutoencoderKL; not changed.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.first = encoder.conv_in
        self.blocks = nn.ModuleList(encoder.down_blocks)
        self._wanted = WeakTensorKeyDictionary()  # features of targets, as long as these are kept

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit-length features after each stage; images (N, 3, H, W), nominally in [0, 1]."""
        x = self.first(images * 2.0 - 1.0)
        found = [x] + [x := block(x) for block in self.blocks]
        return [F.normalize(x, dim=1, eps=1e-6) for x in found]

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scalar distance, 0 for equal images; gradients reach `images` only.

        The features of `targets` are remembered: training compares with the same tensors again and again.
        """
        wanted = self._wanted.get(targets)
        if wanted is None:
            with torch.no_grad():
                self._wanted[targets] = wanted = self.features(targets)
        stages = [(a - b).pow(2).sum(1).mean() for a, b in zip(self.features(images), wanted, strict=True)]
        return torch.stack(stages).mean()


def perceptual_and_squared(distance: ImageLoss) -> ImageLoss:
    """a1 x distance + a2 x MSE of images in [-1, 1] (Eq. 8)."""

    def loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        squared = 4.0 * F.mse_loss(images, targets)  # [0, 1] to [-1, 1] doubles differences
        return PERCEPTUAL_WEIGHT * distance(images, targets) + SQUARED_WEIGHT * squared

    return loss


@IMAGE_LOSSES.register("vae-features+mse")
def vae_features_and_mse(device: torch.device) -> ImageLoss:
    """The default: the embedded backbones' pretrained encoder, which no recipe or T has changed."""
    return perceptual_and_squared(pretrained_distance(device))


def pretrained_distance(device: torch.device | str) -> FeatureDistance:
    """FeatureDistance on the encoder that `embedded-scaled` shares with all T."""
    from qartsr_lib.backbones import load_backbone

    encoder = load_backbone("embedded-scaled", 1, device).vae.encoder
    return FeatureDistance(encoder).eval().requires_grad_(False)
