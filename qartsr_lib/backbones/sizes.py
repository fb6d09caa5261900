"""What a backbone has of parameters and operations, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from qartsr_lib.backbones.base import OneStepSR, parameter_count

if TYPE_CHECKING:
    import pandas as pd


def backbone_size(model: OneStepSR) -> dict[str, str | float]:
    """Millions of parameters per part, and operations (two per multiply-add) of one pass to 512x512."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, which upscaling needs not

    sizes = {
        "VAE encoder": parameter_count(model.vae.encoder) + parameter_count(model.vae.quant_conv),
        "UNet": parameter_count(model.unet),
        "VAE decoder": parameter_count(model.vae.decoder) + parameter_count(model.vae.post_quant_conv),
    }
    sizes["total"] = sum(sizes.values())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 512, 512))
    row = {"backbone": model.name} | {f"{part}, M": round(size / 1e6, 2) for part, size in sizes.items()}
    return row | {"GFLOP at 512x512": round(counter.get_total_flops() / 1e9, 1)}


def time_shares(model: OneStepSR, size: int = 512) -> pd.DataFrame:
    """Seconds and share of the forward time of encoder, UNet and decoder, and of attention products."""
    import pandas as pd  # not for who only loads a backbone

    upscaled = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    upscaled = upscaled.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        stages = model.stages(upscaled)
        calls = {
            "VAE encoder": lambda: model.encode(upscaled),
            "UNet": lambda: model.predict_noise(stages.z_l),
            "VAE decoder": lambda: model.decode(stages.z_h),
        }
        times = {part: _timed(call) for part, call in calls.items()}
    seconds = {part: total for part, (total, _) in times.items()}
    whole = sum(seconds.values())
    seconds["of it attention products"] = sum(attention for _, attention in times.values())
    rows = [(part, value, value / whole) for part, value in seconds.items()]
    return pd.DataFrame(rows, columns=["part", "seconds", "share"]).set_index("part").round(3)


class _AttentionTimer(TorchFunctionMode):
    seconds = 0.0  # spent in attention products

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        started = time.perf_counter()
        result = function(*arguments, **(keywords or {}))
        if function is F.scaled_dot_product_attention:
            self.seconds += time.perf_counter() - started
        return result


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """(seconds of a call, seconds of it in attention products), after one call to warm up."""
    call()
    started = time.perf_counter()
    with _AttentionTimer() as timer:
        call()
    return time.perf_counter() - started, timer.seconds
