"""Which tiles a product is cut into: a few that may be best for its sizes, and the fastest of them by trying."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program's part of a product.

    Attributes:
        m, n, k: positions, outputs, and channels at a time.
        warps: of one program.
        splits: programs among which the taps and channels of a tile are divided.
    """

    m: int
    n: int
    k: int
    warps: int
    splits: int = 1
    stages: int = 3

    def programs(self, rows: int, c_out: int) -> int:
        """How many it takes for an output of these sizes, all splits together."""
        return -(-rows // self.m) * -(-c_out // self.n) * self.splits


#: (positions, outputs, warps), largest first. Two programs of the second fit a processor side by side, so that
#: one computes while the other adds and stores; the first reads the least for a product.
SHAPES = ((128, 256, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4))
NARROWEST = (64, 32, 4)
"""For layers with few outputs, such as those that make an image."""
FEWEST_STEPS = 4
"""A split that does fewer has hardly begun to load ahead."""
MOST_SPLITS = 16
TRIED = 2
"""Of every product; each one more is compiled for several kinds of layers."""

BUSY = 3_000_000
"""Cycles in which a GPU waits for all launches that are timed: small products take less than their launch."""


@lru_cache(maxsize=1024)
def candidates(rows: int, c_out: int, padded: int, taps: int, processors: int) -> tuple[Tiles, ...]:
    """At most TRIED + 1 Tiles, the most promising one first: the largest that still give every processor one.

    Where even the smallest leave processors idle, tiles are split until all have work.
    """
    k = next(size for size in (128, 64, 32) if padded % size == 0)
    fitting = [Tiles(m, n, k, warps) for m, n, warps in SHAPES if n < 2 * c_out]
    fitting = fitting or [Tiles(*NARROWEST[:2], k, NARROWEST[2])]
    enough = [tiles for tiles in fitting if tiles.programs(rows, c_out) >= processors]
    if len(enough) > 1:
        # Larger tiles read less, smaller ones lose less where the last round of programs is short.
        return tuple(enough[:TRIED])
    steps = taps * padded // k
    smallest = [tiles for tiles in fitting if tiles.m == 64]

    def split(tiles: Tiles) -> Tiles:
        wanted = -(-processors // tiles.programs(rows, c_out))
        return replace(tiles, splits=max(1, min(wanted, steps // FEWEST_STEPS, MOST_SPLITS)))

    found = [*enough, *map(split, smallest), smallest[-1]]
    return tuple(dict.fromkeys(found))[: TRIED + 1]


@lru_cache(maxsize=8)
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 elsewhere (Triton's interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_fastest: dict[Hashable, Tiles] = {}


def fastest(key: Hashable, tried: tuple[Tiles, ...], launch: Callable[[Tiles], object]) -> Tiles:
    """Those of `tried` with which `launch` takes least on this GPU; results do not depend on it, only the time.

    Args:
        key: what the answer is kept under.
        launch: runs the product with given tiles.
    """
    if key in _fastest:
        return _fastest[key]
    measurable = torch.cuda.is_available() and not torch.compiler.is_compiling()
    if len(tried) == 1 or not measurable or torch.cuda.is_current_stream_capturing():
        return tried[0]
    spent = {tiles: _milliseconds(lambda tiles=tiles: launch(tiles)) for tiles in tried}
    _fastest[key] = min(spent, key=spent.get)
    return _fastest[key]


def _milliseconds(call: Callable[[], object], groups: int = 3, times: int = 4) -> float:
    """Least GPU time of `times` calls; others may use the GPU, too, so it is measured more than once."""
    call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(groups)]
    for first, last in pairs:
        torch.cuda._sleep(BUSY)
        first.record()
        for _ in range(times):
            call()
        last.record()
        last.synchronize()
    return min(first.elapsed_time(last) for first, last in pairs)
