"""Calibrate a backbone once for all bit widths: what its layers see in full precision is always the same."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qartsr_lib.base.progress import progress
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.observers import OBSERVERS
from qartsr_lib.quant.quantizers import Quantizer
from qartsr_lib.quant.states import calibrate, quant_modules

Limits = tuple[torch.Tensor, torch.Tensor]


class RangeStore:
    """Ranges per full-precision backbone, calibration set and range rule, as long as the backbone lives.

    The backbone's weights must not be changed between calls; rules that look at the bit width are
    kept apart by it.
    """

    def __init__(self) -> None:
        self._ranges: WeakKeyDictionary[nn.Module, dict[tuple, Limits]] = WeakKeyDictionary()

    def calibrate(self, backbone: nn.Module, quantized: nn.Module, images: list[torch.Tensor], label: str) -> None:
        """Give `quantized`, a converted copy of `backbone`, its activation ranges; equal to `states.calibrate`.

        Args:
            images: LQ images (1, 3, h, w); they identify the calibration set.
            label: of the progress bar, which appears only where ranges are missing.
        """
        known = self._ranges.setdefault(backbone, {})
        modules = list(quant_modules(quantized))
        # Quantized attention products are computed another way, equal only up to rounding: kept apart.
        products = frozenset(
            q.name for m in modules if not isinstance(m, QuantLayer) for q in m.activation_quantizers()
        )
        shared = (_digest(images), products)
        keys = {q: (*shared, q.name, *_rule(q)) for m in modules for q in m.activation_quantizers()}
        if any(key not in known for key in keys.values()):
            ranges = calibrate(quantized, quantized.upscale, progress(images, label))
            known.update((keys[quantizer], limits) for quantizer, limits in ranges.items())
            return
        for quantizer, key in keys.items():
            quantizer.set_range(*known[key])


SHARED_RANGES = RangeStore()
"""Of all methods in the shared setting: they see the same full-precision activations."""


def _rule(quantizer: Quantizer) -> tuple:
    config = quantizer.config
    bits = config.bits if getattr(OBSERVERS.get(config.ranges), "looks_at_bits", True) else None
    return (config.ranges, config.granularity, bits)


def _digest(images: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(tuple(image.shape)).encode() + image.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
