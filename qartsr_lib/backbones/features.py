"""Features of the embedded VAE's encoder as a distance: an image loss, and the metric VAE-FD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from qartsr_lib.backbones.base import load_backbone
from qartsr_lib.images.image import DISTANCES


class FeatureDistance(nn.Module):
    """LPIPS's form (arXiv:1801.03924, without learned weights) on the features of a frozen VAE encoder; *not* LPIPS.

    After each of the encoder's stages features are normalized to unit length over the channels, and the squared
    differences are averaged over positions and stages. It needs no download.
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


@DISTANCES.register("embedded VAE")
def pretrained_distance(device: torch.device | str) -> FeatureDistance:
    """FeatureDistance on the encoder that `embedded-scaled` shares with all T."""
    encoder = load_backbone("embedded-scaled", 1, device).vae.encoder
    return FeatureDistance(encoder).eval().requires_grad_(False)
