"""VAE-FD: the study's own perceptual distance, which needs no download; not LPIPS and never called so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qartsr_lib.images.distances import DISTANCES
from qartsr_lib.images.metrics.base import METRICS, Compute, MetricSpec

if TYPE_CHECKING:
    import torch


def _build(_: Mapping[str, Path]) -> Compute:
    import torch

    distance = DISTANCES.get("embedded VAE")("cpu")

    @torch.no_grad()
    def compute(sr: torch.Tensor, hr: torch.Tensor | None) -> float:
        return float(distance(sr, hr))

    return compute


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
