"""Range rules of static activation quantizers: what calibration keeps of the values, and the range it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qartsr_lib.base.registry import Registry
from qartsr_lib.quant.granularity import Granularity, PerTensor
from qartsr_lib.quant.primitives import SCALE_FLOOR

Limits = tuple[torch.Tensor, torch.Tensor]
"""(lower, upper) in a granularity's parameter shape."""
SAMPLE = 2**15
"""Values of a tensor, up to twice as many, that a least-squares range is fitted to: 10 ms, and 0.25 MB, a layer."""
WIDE = 256  # values that a row of a sample counts for at most
_SHARES = 0.75 ** torch.arange(16)  # of the full range, to either side of the median, that are looked at first
_COARSE, _BEST, _ROUNDS = 2**12, 3, 12  # values of that look, how many of its ranges are refined, and how often


class MinMaxObserver:
    """Range rule: smallest and largest value over the whole calibration set (MaxMin, arXiv:1712.05877)."""

    fits_values = False  # whether the range is fitted to a sample of the values, for the bit width in question

    def __init__(self, granularity: Granularity, bits: int = 8) -> None:
        self.granularity, self.bits = granularity, bits
        self._seen: Limits | None = None

    def update(self, x: torch.Tensor) -> None:
        """Take one tensor into account."""
        lower, upper = self.granularity.limits(x.detach())
        if self._seen is not None:
            lower, upper = torch.minimum(lower, self._seen[0]), torch.maximum(upper, self._seen[1])
        # A copy: for a tensor with one element per set the limits are views of the activation.
        self._seen = (lower.clone(), upper.clone())

    def limits(self) -> Limits | None:
        """The range; None where nothing was seen."""
        return self._seen


class FirstBatchObserver(MinMaxObserver):
    """Range of the first tensor alone, as in PassionSR's released layer quantizers."""

    def update(self, x: torch.Tensor) -> None:
        if self._seen is None:
            super().update(x)


class LeastSquaresObserver(MinMaxObserver):
    """The range with the smallest squared error over a sample of the values, per tensor; see `least_squares_range`.

    Other granularities keep smallest and largest value: a range per channel has little to clip.
    """

    fits_values = True

    def __init__(self, granularity: Granularity, bits: int = 8) -> None:
        super().__init__(granularity, bits)
        self._sample = Sample()

    def update(self, x: torch.Tensor) -> None:
        super().update(x)
        if isinstance(self.granularity, PerTensor):
            self._sample.add(x.detach().flatten())

    def limits(self) -> Limits | None:
        if self._seen is None or not isinstance(self.granularity, PerTensor):
            return self._seen
        return least_squares_range(self._sample.values(), *self._seen, self.bits)


OBSERVERS: Registry[type[MinMaxObserver]] = Registry("range rule")
OBSERVERS.register("min-max")(MinMaxObserver)
OBSERVERS.register("first-batch")(FirstBatchObserver)
OBSERVERS.register("least-squares")(LeastSquaresObserver)


class Thinned:
    """Evenly spread ones of what is offered: whenever the sizes of those kept add up to over `most`, half go."""

    def __init__(self, most: int, size: Callable[[Any], int] = lambda _: 1) -> None:
        self.kept: list[Any] = []
        self._most, self._size, self._offered, self._every = most, size, 0, 1

    def offer(self, make: Callable[[], Any]) -> None:
        """Keep what `make` gives, or pass it over without making it."""
        self._offered += 1
        if (self._offered - 1) % self._every:
            return
        self.kept.append(make())
        if sum(map(self._size, self.kept)) > self._most:
            self.kept, self._every = self.kept[::2], 2 * self._every


class Sample:
    """An evenly spaced part of what is added, never more than about 2 SAMPLE values, whatever the number of images.

    Of rows wider than WIDE as many as of those, so that no layer is too wide for several of each image.
    """

    def __init__(self) -> None:
        self._parts = Thinned(2 * SAMPLE, _counted)

    def add(self, x: torch.Tensor) -> None:
        """`x`: (n,), or (n, c) whose rows are kept whole; an equal share of every tensor is kept."""
        share = SAMPLE // 16  # so that at least 16 images are in the sample
        # An odd step, which visits all phases of the even sizes that rows and channels have.
        self._parts.offer(lambda: x[:: max(1, _counted(x) // share) | 1].clone())

    def values(self) -> torch.Tensor:
        """All that is kept, (m,) or (m, c)."""
        return torch.cat(self._parts.kept)


def _counted(rows: torch.Tensor) -> int:
    """Values that `rows`, (n,) or (n, c), count for in a sample."""
    return len(rows) * min(WIDE, rows[:1].numel())


@torch.no_grad()
def least_squares_range(values: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> Limits:
    """The (lower, upper) whose 2^bits evenly spaced codes reproduce `values`, (n,), with the least squared error.

    A coarse look over shares of the full range [lower, upper] to either side of the median, then for the best of them
    codes and the straight line from codes to values are fitted by turns (Lloyd's algorithm for a uniform quantizer).
    Shapes and dtype of lower and upper, scalars, are kept; values that are not finite give them back unchanged.
    """
    levels, low, high = 2**bits - 1, lower.double(), upper.double()
    if not torch.isfinite(values).all() or high <= low:
        return lower, upper
    x, middle = values.double(), values.double().median()
    shares = torch.cartesian_prod(_SHARES, _SHARES).double().to(x.device)
    offsets = middle + shares[:, :1] * (low - middle)
    scales = ((middle + shares[:, 1:] * (high - middle) - offsets) / levels).clamp(min=SCALE_FLOOR)
    coarse = x[:: max(1, len(x) // _COARSE) | 1]
    first = _errors(coarse, offsets, scales, levels).topk(_BEST, largest=False).indices
    candidates = [(low, (high - low) / levels)]
    candidates += [_refined(x, offsets[index, 0], scales[index, 0], levels) for index in first.tolist()]
    errors = [float(_errors(x, offset, scale, levels)) for offset, scale in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    if best == 0:
        return lower, upper
    offset, scale = candidates[best]
    return offset.to(lower.dtype), (offset + levels * scale).to(upper.dtype)


def _refined(x: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, levels: int) -> Limits:
    """(offset, scale) after fitting codes, then the line through them, by turns."""
    mean = x.mean()
    for _ in range(_ROUNDS):
        codes = ((x - offset) / scale).round_().clamp_(0, levels)
        centre = codes.mean()
        apart = codes - centre
        slope = (apart * (x - mean)).sum() / apart.square().sum()
        if not slope > 0:  # all values have one code
            break
        offset, scale = mean - slope * centre, slope
    return offset, scale


def _errors(x: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, levels: int) -> torch.Tensor:
    """Mean squared error over x, (n,), for each row of offset and scale, (m, 1) or ()."""
    codes = ((x - offset) / scale).round_().clamp_(0, levels)
    return codes.mul_(scale).add_(offset).sub_(x).square_().mean(-1)
