"""Range rules: what a quantizer learns about its input during calibration."""

from __future__ import annotations

from typing import Protocol

import torch

from qartsr_lib.base.registry import Registry
from qartsr_lib.quant.granularity import Granularity


class Observer(Protocol):
    """Sees every tensor that reaches a quantizer while calibrating, then names a range.

    A rule is a class `Observer(granularity, bits)`, registered in OBSERVERS here or in a method's file.
    One that does not look at the bits says so by `looks_at_bits = False`: it is then run once for
    all bit widths.
    """

    def update(self, x: torch.Tensor) -> None:
        """Take one tensor into account."""

    def limits(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(lower, upper) in the granularity's parameter shape; None before the first update."""


OBSERVERS: Registry[type[Observer]] = Registry("range rule")


@OBSERVERS.register("min-max")
class MinMaxObserver:
    """Smallest and largest value over the whole calibration set (MaxMin, arXiv:1712.05877)."""

    looks_at_bits = False

    def __init__(self, granularity: Granularity, bits: int) -> None:
        self._granularity = granularity
        self._limits: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, x: torch.Tensor) -> None:
        lower, upper = self._granularity.limits(x.detach())
        if self._limits is not None:
            lower, upper = torch.minimum(lower, self._limits[0]), torch.maximum(upper, self._limits[1])
        # A copy: for a tensor with one element per set the limits are views of the activation.
        self._limits = (lower.clone(), upper.clone())

    def limits(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self._limits


@OBSERVERS.register("first-batch")
class FirstBatchObserver(MinMaxObserver):
    """Range of the first tensor alone, as in PassionSR's released layer quantizers."""

    def update(self, x: torch.Tensor) -> None:
        if self._limits is None:
            super().update(x)
