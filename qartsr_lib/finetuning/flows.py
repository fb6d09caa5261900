"""Full-precision flows between blocks, computed once per batch: targets, and entries where nothing upstream changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from qartsr_lib.backbones.steps import Flow, Step


class Flows:
    """What flows into chosen steps of a chain that does not change, for a fixed list of batches.

    Args:
        chain: (name, step), e.g. `steps(teacher)`.
        batches: upscaled images, (N, 3, H, W) each.
        positions: the steps whose input is wanted; len(chain) is the image.
        keep: False computes them anew at every call, as a loop without a cache does.
    """

    def __init__(
        self,
        chain: Sequence[tuple[str, Step]],
        batches: Sequence[torch.Tensor],
        positions: Iterable[int],
        keep: bool = True,
    ) -> None:
        self._chain, self._batches, self._keep = chain, batches, keep
        self._positions = frozenset(positions)
        self._kept: dict[int, dict[int, Flow]] = {}

    def at(self, batch: int) -> dict[int, Flow]:
        """Position -> flow of batch number `batch`."""
        if batch in self._kept:
            return self._kept[batch]
        flows = self._compute(self._batches[batch])
        if self._keep:
            self._kept[batch] = flows
        return flows

    @torch.no_grad()
    def _compute(self, upscaled: torch.Tensor) -> dict[int, Flow]:
        flow, found = Flow(upscaled), {}
        for position in range(max(self._positions, default=0) + 1):
            if position in self._positions:
                found[position] = flow
            if position < max(self._positions):
                flow = self._chain[position][1](flow)
        return found
