"""Quality on validation photographs: what every choice of setting, step count or checkpoint rests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.degrade import degrade
from qartsr_lib.images import read_image, upscale_bicubic

_LUMA = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255.0


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of two images in [0, 1]; the peak is 1 (infinite when they are equal)."""
    return float(-10.0 * torch.log10(torch.mean((a.double() - b.double()) ** 2)))


def luma(image: torch.Tensor) -> torch.Tensor:
    """BT.601 luma of an RGB image in [0, 1]: (N, 1, H, W) in [16/255, 235/255]."""
    return (image * _LUMA.to(image)).sum(dim=1, keepdim=True) + 16.0 / 255.0


class Validation:
    """Mean PSNR-Y and RGB PSNR on the central crops of some photographs, bicubic and realistic.

    A quick look while training, on unquantized tensors; published numbers come from 8-bit PNGs.

    Args:
        paths: photographs.
        size: side of the crops in HR pixels, a multiple of 16.
    """

    def __init__(self, paths: Sequence[Path], size: int = 192) -> None:
        self._pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"bicubic": [], "realistic": []}
        for seed, path in enumerate(paths):
            image = read_image(path)
            top, left = ((side - size) // 2 for side in image.shape[-2:])
            if min(top, left) < 0:
                continue
            hr = image[..., top : top + size, left : left + size]
            for kind, pairs in self._pairs.items():
                pairs.append((degrade(hr, kind, seed), hr))

    def __call__(self, model: OneStepSR) -> dict[str, float]:
        """Quality of `model` under the names psnr_y_bicubic, psnr_rgb_bicubic, psnr_y_realistic, ..."""
        device = next(model.parameters()).device
        return self._score(lambda lq: model.upscale(lq.to(device)).cpu())

    def baseline(self) -> dict[str, float]:
        """The same for bicubic upscaling."""
        return self._score(upscale_bicubic)

    def _score(self, upscale) -> dict[str, float]:
        result = {}
        for kind, pairs in self._pairs.items():
            images = [(upscale(lq), hr) for lq, hr in pairs]
            result[f"psnr_y_{kind}"] = sum(psnr(luma(sr), luma(hr)) for sr, hr in images) / len(images)
            result[f"psnr_rgb_{kind}"] = sum(psnr(sr, hr) for sr, hr in images) / len(images)
        return {name: round(value, 4) for name, value in result.items()}
