"""Which elements of a tensor share one scale: all, one channel's, or a group of channels'.

* axis >= 0 (weights): axes before it are kept too, so a (c_out, c_in, k, k) weight in groups along axis 1 has one
  scale per output channel and group;
* axis < 0 (activations): the leading axes (batch, tokens) are reduced, so that the parameters fit any batch: axis -3
  of (N, C, H, W), axis -1 of (..., C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Granularity:
    """Common part of the four; `asdict` is JSON-ready and `granularity_from_dict` reads it back."""

    type: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", type(self).__name__)

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
        return tuple(torch.aminmax(x))


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale per index of `axis`: (c_out, 1, 1, 1) for weights (axis 0), (C, 1, 1) for (N, C, H, W) (axis -3)."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale per `size` consecutive indices of `axis` (input channels), shared over the kernel.

    A tensor whose channel count `size` does not divide (or exceeds) forms one group: there is no ragged last one.
    Weight (c_out, c_in, k, k), axis 1 -> (c_out, c_in / size, 1, 1, 1); activation (..., C), axis -1 -> (C / size, 1).
    With `per_position`, of weights alone, every position of the kernel has scales of its own:
    (c_out, c_in / size, 1, k, k).
    """

    size: int
    axis: int = 1
    per_position: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"group size must be at least 1, got {self.size}")
        if self.per_position and self.axis < 0:
            raise ValueError("per_position is of weights, whose axis counts from the front")

    def view(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[self.axis]
        size = self.size if channels % self.size == 0 else channels
        return x.unflatten(self.axis, (channels // size, size))

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.per_position:
            grouped = self.view(x)
            return grouped.amin(self.axis + 1, keepdim=True), grouped.amax(self.axis + 1, keepdim=True)
        # Splitting a negative axis in two moves the group index one place to the left.
        return _limits_along(self.view(x), self.axis if self.axis >= 0 else self.axis - 1)


@dataclass(frozen=True)
class PerHalf(Granularity):
    """One scale per half of the channels along `axis`, as PerGroup of half their number; one for an odd number."""

    axis: int = 1

    def view(self, x: torch.Tensor) -> torch.Tensor:
        return self._groups(x).view(x)

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._groups(x).limits(x)

    def _groups(self, x: torch.Tensor) -> PerGroup:
        channels = x.shape[self.axis]
        return PerGroup(channels if channels % 2 else channels // 2, self.axis)


def granularity_from_dict(described: Mapping) -> Granularity:
    """Inverse of `asdict`; KeyError or TypeError when `described` is not one."""
    kinds = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup, PerHalf)}
    return kinds[described["type"]](**{name: value for name, value in described.items() if name != "type"})


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
