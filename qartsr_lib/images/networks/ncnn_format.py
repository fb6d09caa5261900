"""Networks in ncnn's format: the graph (.param) and its weights (.bin), computed by the package ncnn on the CPU.

In float32, whatever the processor. The 16-bit numbers of a .bin file are widened, not computed with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.networks import Upscale

_SHORTCUTS = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage", "vulkan_compute")


def build(param: Path, weights: Path) -> Upscale:
    """The network between the blobs "data" and "output", both RGB in [0, 1]; a QartsrError for unreadable files."""
    import ncnn

    network = ncnn.Net()
    for shortcut in _SHORTCUTS:
        setattr(network.opt, f"use_{shortcut}", False)
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(str(param)) or network.load_model(str(weights)):
        raise QartsrError(f"{weights}: ncnn {ncnn.__version__} cannot read it; install the pinned version")

    def upscale(lq: torch.Tensor) -> torch.Tensor:
        pixels = np.ascontiguousarray(lq[0].numpy())  # ncnn.Mat only points to it
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(pixels))
        failed, sr = extractor.extract("output")
        if failed:
            raise QartsrError(f"{param}: ncnn gave up on an image of {lq.shape[-1]}x{lq.shape[-2]}; is memory short?")
        return torch.from_numpy(np.array(sr))[None]

    return upscale
