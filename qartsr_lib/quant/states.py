"""What quantized modules do in forward - full precision, calibrate, quantize - and switching it safely."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

import torch
from torch import nn

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


def full_precision(model: nn.Module):
    """Context in which `model` (or a part of it) computes exactly what the float network computes."""
    return in_state(model, QuantState.FULL_PRECISION)


@contextmanager
def calibrating(model: nn.Module) -> Iterator[dict[Quantizer, tuple[torch.Tensor, torch.Tensor]]]:
    """Context in which forward passes record activation ranges, every layer fed by full precision.

    Ranges take effect together at the end. After an exception inside, or a range that is not
    finite, all quantizers keep what they had; the states are restored in any case. A quantizer
    that saw no data keeps what it had, too.

    Yields:
        A dictionary, empty at first; at the end it holds each quantizer's new (lower, upper).

    Raises:
        QartsrError: NaN or infinity reached a layer.
    """
    quantizers = [quantizer for module in quant_modules(model) for quantizer in module.activation_quantizers()]
    for quantizer in quantizers:
        quantizer.start_observing()
    ranges: dict[Quantizer, tuple[torch.Tensor, torch.Tensor]] = {}
    try:
        with in_state(model, QuantState.CALIBRATING):
            yield ranges
    finally:
        seen = [(quantizer, quantizer.stop_observing()) for quantizer in quantizers]
    ranges.update((quantizer, limits) for quantizer, limits in seen if limits is not None)
    for quantizer, limits in ranges.items():
        quantizer.check_range(*limits)
    for quantizer, limits in ranges.items():
        quantizer.set_range(*limits)


def calibrate(
    model: nn.Module, forward_fn: Callable[[T], object], inputs: Iterable[T]
) -> dict[Quantizer, tuple[torch.Tensor, torch.Tensor]]:
    """Record activation ranges: call `forward_fn` on each of `inputs`, without gradients.

    Args:
        model: a model converted by quantize_.
        forward_fn: runs the model on one input, e.g. `backbone.upscale`.
        inputs: the calibration set, one item at a time.

    Returns:
        The (lower, upper) that each quantizer was given.
    """
    with calibrating(model) as ranges, torch.no_grad():
        for item in inputs:
            forward_fn(item)
    return ranges
