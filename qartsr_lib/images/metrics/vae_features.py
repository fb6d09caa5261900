"""VAE-FD: the study's own perceptual distance, which needs no download; not LPIPS and never called so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.metrics import METRICS, Compute, MetricSpec
from qartsr_lib.images.metrics.quicker import KEPT, Remembering


def _build(_: Mapping[str, Path]) -> Compute:
    import torch

    from qartsr_lib.images.image import DISTANCES

    if "embedded VAE" not in DISTANCES:
        raise QartsrError("VAE-FD needs the embedded VAE: import qartsr_lib.backbones first")
    distance = DISTANCES.get("embedded VAE")("cpu")
    same = Remembering(lambda image: image, KEPT // 2)  # whose features the distance keeps
    return torch.no_grad()(lambda sr, hr: float(distance(sr, same(hr))))


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
