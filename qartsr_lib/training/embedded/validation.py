"""Quality on validation photographs: what every choice of setting, step count or checkpoint rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import central_crop, psnr, psnr_y, read_image, upscale_bicubic


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
            hr = central_crop(read_image(path), size)
            if min(hr.shape[-2:]) < size:
                continue
            for kind, pairs in self._pairs.items():
                pairs.append((degrade(hr, kind, seed), hr))

    def __call__(self, model: OneStepSR) -> dict[str, float]:
        """Quality of `model` under the names psnr_y_bicubic, psnr_rgb_bicubic, psnr_y_realistic, ..."""
        device = next(model.parameters()).device
        return self.score(lambda lq: model.upscale(lq.to(device)).cpu())

    @torch.no_grad()
    def reconstruction(self, model: OneStepSR) -> dict[str, float]:
        """psnr_y and psnr_rgb of the HR crops themselves after encoder and decoder: what bounds the upscaling."""
        pairs = [(model.decode(model.encode(hr)).clamp(0, 1), hr) for _, hr in self._pairs["bicubic"]]
        return {
            "psnr_y": round(sum(psnr_y(image, hr) for image, hr in pairs) / len(pairs), 4),
            "psnr_rgb": round(sum(psnr(image, hr) for image, hr in pairs) / len(pairs), 4),
        }

    def baseline(self) -> dict[str, float]:
        """The same for bicubic upscaling."""
        return self.score(upscale_bicubic)

    def score(self, upscale: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The same for any function from an LQ image to its upscaled image, both (1, 3, ., .) in [0, 1]."""
        result = {}
        for kind, pairs in self._pairs.items():
            images = [(upscale(lq), hr) for lq, hr in pairs]
            result[f"psnr_y_{kind}"] = sum(psnr_y(sr, hr) for sr, hr in images) / len(images)
            result[f"psnr_rgb_{kind}"] = sum(psnr(sr, hr) for sr, hr in images) / len(images)
        return {name: round(value, 4) for name, value in result.items()}
