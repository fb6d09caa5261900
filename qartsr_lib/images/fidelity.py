"""PSNR on tensors, for a quick look; the numbers of tables come from 8-bit PNGs through `metrics`."""

from __future__ import annotations

import torch

_LUMA = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255.0


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of two images in [0, 1]; the peak is 1 (infinite when they are equal)."""
    return float(-10.0 * torch.log10(torch.mean((a.double() - b.double()) ** 2)))


def psnr_y(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of the luma of two RGB images in [0, 1]."""
    return psnr(luma(a), luma(b))


def luma(image: torch.Tensor) -> torch.Tensor:
    """BT.601 luma of an RGB image in [0, 1]: (N, 1, H, W) in [16/255, 235/255]."""
    return (image * _LUMA.to(image)).sum(dim=1, keepdim=True) + 16.0 / 255.0
