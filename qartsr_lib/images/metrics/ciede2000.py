"""CIEDE2000: how far colours are off, which PSNR-Y, taken on luminance, does not see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qartsr_lib.images.metrics import METRICS, Compute, MetricSpec

if TYPE_CHECKING:
    import torch


def _build(_: Mapping[str, Path]) -> Compute:
    import numpy as np
    from skimage.color import deltaE_ciede2000, rgb2lab

    def lab(image: torch.Tensor) -> np.ndarray:
        return rgb2lab(image[0].permute(1, 2, 0).double().numpy())  # sRGB, D65, 2 degrees

    return lambda sr, hr: float(np.mean(deltaE_ciede2000(lab(hr), lab(sr))))


METRICS.register("CIEDE2000")(
    MetricSpec(
        name="CIEDE2000",
        kind="FR",
        higher_is_better=False,
        description="mean colour difference over pixels, Delta E of Sharma, Wu and Dalal (2005), by scikit-image",
        build=_build,
        options={"version": 1},
    )
)
