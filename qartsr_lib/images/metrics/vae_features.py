"""VAE-FD: the study's own perceptual distance, which needs no download; not LPIPS and never called so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qartsr_lib.base.registry import Registry
from qartsr_lib.images.metrics.base import METRICS, Compute, MetricSpec

#: Name -> function(device) -> distance of images (N, 3, H, W) in [0, 1]; `backbones.features` registers the one.
DISTANCES: Registry[Callable[[str], Callable]] = Registry("feature distance")


def _build(_: Mapping[str, Path]) -> Compute:
    import torch

    distance = DISTANCES.get("embedded VAE")("cpu")
    return torch.no_grad()(lambda sr, hr: float(distance(sr, hr)))


METRICS.register("VAE-FD")(
    MetricSpec(
        name="VAE-FD",
        kind="FR",
        higher_is_better=False,
        description="unit-length feature differences in the embedded VAE's encoder (finetuning.losses.FeatureDistance)",
        build=_build,
        options={"features": "embedded VAE encoder, conv_in and down blocks", "version": 1},
        minimum_side=16,
    )
)
