"""Which elements of a tensor share one scale: all, one channel's, or a group of channels'.

Axes follow one convention:

* axis >= 0 (weights): axes before it are kept too, so a (c_out, c_in, k, k) weight in groups along
  axis 1 has one scale per output channel and group;
* axis < 0 (activations): the leading axes (batch, tokens) are reduced, so that the parameters fit
  any batch: axis -3 of (N, C, H, W), axis -1 of (..., C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch


class Granularity:
    """Common part of PerTensor, PerChannel and PerGroup."""

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in the shape that the parameters broadcast to (a view where strides allow)."""
        return x

    def with_axis(self, axis: int) -> Granularity:
        """The same granularity along another axis (per tensor: itself)."""
        return replace(self, axis=axis) if hasattr(self, "axis") else self

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Smallest and largest value of each set of elements that share a scale; NaN spreads."""
        return _limits_along(x, self.axis)

    def parameter_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """Shape of the scale for a tensor of `shape` (batch and spatial sizes do not matter)."""
        return self.limits(torch.empty(shape, device="meta"))[0].shape


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale, of shape ()."""

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lower, upper = torch.aminmax(x)
        return lower, upper


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale per index of `axis`: (c_out, 1, 1, 1) for weights (axis 0), (C, 1, 1) for (N, C, H, W) (axis -3)."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale per `size` consecutive indices of `axis` (input channels), shared over the kernel.

    A tensor whose channel count `size` does not divide (or exceeds) forms one group: there is no ragged last one.

    Shapes: weight (c_out, c_in, k, k), axis 1 -> (c_out, c_in / size, 1, 1, 1); activation
    (..., C), axis -1 -> (C / size, 1).
    """

    size: int
    axis: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"group size must be at least 1, got {self.size}")

    def view(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[self.axis]
        size = self.size if channels % self.size == 0 else channels
        return x.unflatten(self.axis, (channels // size, size))

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Splitting a negative axis in two moves the group index one place to the left.
        return _limits_along(self.view(x), self.axis if self.axis >= 0 else self.axis - 1)


_KINDS = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup)}


def granularity_to_dict(granularity: Granularity) -> dict:
    """JSON-ready form; `granularity_from_dict` reads it back."""
    return {"type": type(granularity).__name__, **asdict(granularity)}


def granularity_from_dict(described: Mapping) -> Granularity:
    """Inverse of `granularity_to_dict`; KeyError or TypeError when `described` is not one."""
    parameters = dict(described)
    return _KINDS[parameters.pop("type")](**parameters)


def broadcast_along(values: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """(n,) reshaped to broadcast along `axis` of a tensor of `ndim` dimensions."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.view(shape)


def _limits_along(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    kept = range(axis + 1) if axis >= 0 else (x.ndim + axis,)
    reduced = tuple(dim for dim in range(x.ndim) if dim not in kept)
    lower, upper = (x.amin(reduced, keepdim=True), x.amax(reduced, keepdim=True)) if reduced else (x, x)
    return (lower, upper) if axis >= 0 else (lower.reshape(lower.shape[axis:]), upper.reshape(upper.shape[axis:]))
