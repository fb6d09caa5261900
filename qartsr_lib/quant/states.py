"""What quantized modules do in forward - full precision, calibrate, quantize - switching it safely, and calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qartsr_lib.base.progress import progress
from qartsr_lib.quant.observers import OBSERVERS, Limits
from qartsr_lib.quant.quantizers import Quantizer

T = TypeVar("T")


class QuantState(Enum):
    """FULL_PRECISION computes with floats; CALIBRATING too, and records ranges; QUANTIZED quantizes."""

    FULL_PRECISION = "full precision"
    CALIBRATING = "calibrating"
    QUANTIZED = "quantized"


class QuantModule(nn.Module):
    """Base of modules that have a QuantState: quantized layers and attention products."""

    state = QuantState.QUANTIZED

    def set_state(self, state: QuantState) -> None:
        """Switch; the state is a plain attribute and not part of state_dict."""
        self.state = state

    def activation_quantizers(self) -> list[Quantizer]:
        """Quantizers whose range comes from calibration data."""
        raise NotImplementedError

    def shares_ranges(self) -> bool:
        """Whether its ranges are other methods' too: not where a quantizer has its own way to observe."""
        kinds = {type(quantizer) for quantizer in self.activation_quantizers()}
        own = ("start_observing", "observe", "stop_observing")
        return all(getattr(kind, name) is getattr(Quantizer, name) for kind in kinds for name in own)

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What finetuning updates, by kind ("bounds", "merged", ...); each kind has its learning rate. None here."""
        return {}


def quant_modules(model: nn.Module) -> list[QuantModule]:
    """Every module of `model` that has a QuantState, each once."""
    return [module for module in model.modules() if isinstance(module, QuantModule)]


@contextmanager
def in_state(model: nn.Module, state: QuantState) -> Iterator[None]:
    """Put all quantized modules of `model` in `state`; each gets its own earlier state back."""
    earlier = [(module, module.state) for module in quant_modules(model)]
    try:
        for module, _ in earlier:
            module.set_state(state)
        yield
    finally:
        for module, before in earlier:
            module.set_state(before)


def calibrate(model: nn.Module, forward_fn: Callable[[T], object], inputs: Iterable[T]) -> dict[Quantizer, Limits]:
    """Record activation ranges, every layer fed by full precision, and set them together at the end.

    After an exception all quantizers keep what they had; one that saw no data does so, too. The states are restored in
    any case.

    Args:
        model: converted by quantize_.
        forward_fn: runs the model on one input, e.g. `backbone.upscale`; called without gradients.
        inputs: the calibration set, one item at a time.

    Returns the (lower, upper) that each quantizer was given; QartsrError when NaN or infinity reached a layer.
    """
    quantizers = [quantizer for module in quant_modules(model) for quantizer in module.activation_quantizers()]
    for quantizer in quantizers:
        quantizer.start_observing()
    try:
        with in_state(model, QuantState.CALIBRATING), torch.no_grad():
            for item in inputs:
                forward_fn(item)
    finally:
        seen = {quantizer: quantizer.stop_observing() for quantizer in quantizers}
    ranges = {quantizer: limits for quantizer, limits in seen.items() if limits is not None}
    for quantizer, limits in ranges.items():
        quantizer.check_range(*limits)
    for quantizer, limits in ranges.items():
        quantizer.set_range(*limits)
    return ranges


#: Ranges of full-precision activations per backbone, as long as it lives: the same for all methods and bit widths.
_RANGES: WeakKeyDictionary[nn.Module, dict[tuple, Limits]] = WeakKeyDictionary()


def calibrate_once(backbone: nn.Module, quantized: nn.Module, images: list[torch.Tensor], label: str) -> None:
    """Give `quantized`, a converted copy of `backbone`, its activation ranges; equal to `calibrate`.

    The weights of `backbone`, in full precision, must not change between calls. LQ images (1, 3, h, w) identify the
    calibration set; `label` is of the progress bar, which appears only where ranges are missing.
    """
    modules = quant_modules(quantized)
    if not all(module.shares_ranges() for module in modules):
        calibrate(quantized, quantized.upscale, progress(images, label))
        return
    known = _RANGES.setdefault(backbone, {})
    # Quantized attention products are computed another way, equal only up to rounding: kept apart.
    products = [module for module in modules if not isinstance(module, nn.Linear | nn.Conv2d)]
    shared = (images_sha256(images), frozenset(q.name for module in products for q in module.activation_quantizers()))
    quantizers = [quantizer for module in modules for quantizer in module.activation_quantizers()]
    keys = {q: (*shared, q.name, *_rule(q)) for q in quantizers}
    if any(key not in known for key in keys.values()):
        ranges = calibrate(quantized, quantized.upscale, progress(images, label))
        known.update((keys[quantizer], limits) for quantizer, limits in ranges.items())
        return
    for quantizer, key in keys.items():
        quantizer.set_range(*known[key])


def _rule(quantizer: Quantizer) -> tuple:
    """What the range of `quantizer` depends on, beside the values."""
    config = quantizer.config
    bits = config.bits if OBSERVERS.get(config.ranges).fits_values else None
    return config.ranges, config.granularity, bits


def images_sha256(images: Iterable[torch.Tensor]) -> str:
    """sha256 over sizes and values."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(tuple(image.shape)).encode() + image.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
