"""Features of the embedded VAE's encoder as a distance: an image loss, and the metric VAE-FD."""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS, load_embedded
from qartsr_lib.images.image import DISTANCES


class RememberingDistance(nn.Module):
    """Base of distances between features of two images, those of the second remembered.

    Training compares with the same targets again and again: their features are kept as long as the tensors live, up to
    ROOM bytes in all; beyond it they are computed each time, to the same bits.
    """

    ROOM = 2**30

    def __init__(self) -> None:
        super().__init__()
        self._wanted = WeakTensorKeyDictionary()
        self._left = self.ROOM

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What is compared; images (N, 3, H, W), nominally in [0, 1]."""
        raise NotImplementedError

    def between(self, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        """Scalar distance of two results of `features`."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scalar distance, 0 for equal images; gradients reach `images` only."""
        wanted = self._wanted.get(targets)
        if wanted is None:
            with torch.no_grad():
                wanted = self.features(targets)
            self._remember(targets, wanted)
        return self.between(self.features(images), wanted)

    def _remember(self, targets: torch.Tensor, wanted: list[torch.Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in wanted)
        if size <= self._left:
            self._wanted[targets] = wanted
            self._left -= size
            weakref.finalize(targets, self._forgotten, size)

    def _forgotten(self, size: int) -> None:
        self._left += size


class FeatureDistance(RememberingDistance):
    """LPIPS's form (arXiv:1801.03924, without learned weights) on the features of a frozen VAE encoder; *not* LPIPS.

    After each of the encoder's stages features are normalized to unit length over the channels, and the squared
    differences are averaged over positions and stages. It needs no download.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.first = encoder.conv_in
        self.blocks = nn.ModuleList(encoder.down_blocks)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit-length features after each stage."""
        x = self.first(images * 2.0 - 1.0)
        found = [x] + [x := block(x) for block in self.blocks]
        return [F.normalize(x, dim=1, eps=1e-6) for x in found]

    def between(self, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(a - b).pow(2).sum(1).mean() for a, b in zip(found, wanted, strict=True)]).mean()


@DISTANCES.register("embedded VAE")
def pretrained_distance(device: torch.device | str) -> FeatureDistance:
    """FeatureDistance on the encoder that the shipped `embedded-scaled` shares with all T, whatever users trained."""
    encoder = load_embedded("embedded-scaled", 1, PACKAGED_WEIGHTS).vae.encoder
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    return FeatureDistance(encoder).eval().requires_grad_(False)
