"""Flows between the blocks of a chain that does not change: targets, and entries where nothing upstream changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from qartsr_lib.backbones.steps import Flow, Step
from qartsr_lib.training.finetuning.flow_store import FlowStore


class Flows:
    """What flows into chosen steps of a chain, for a fixed list of batches.

    Args:
        chain: (name, step), e.g. `steps(teacher)`.
        batches: upscaled images, (N, 3, H, W) each.
        positions: the steps whose input will be wanted; len(chain) is the image.
        store: keeps them, so that each is computed once where it has room, else from the nearest one
            kept upstream; None computes everything from the image at every call, as a loop without a cache does.
    """

    def __init__(
        self,
        chain: Sequence[tuple[str, Step]],
        batches: Sequence[torch.Tensor],
        positions: Iterable[int],
        store: FlowStore | None,
    ) -> None:
        self._chain, self._batches, self._store = chain, batches, store
        self._positions = set(positions)

    def at(self, batch: int, positions: Collection[int]) -> dict[int, Flow]:
        """Position -> flow of batch number `batch`."""
        found = {position: self._store.get(self._key(batch, position)) for position in self._kept(batch, positions)}
        missing = set(positions) - set(found)
        return found | (self._compute(batch, missing) if missing else {})

    def narrow(self, positions: Iterable[int]) -> None:
        """Only `positions` will be wanted from now on: let go of the others."""
        gone = self._positions - set(positions)
        self._positions -= gone
        for position in gone if self._store is not None else ():
            for batch in range(len(self._batches)):
                self._store.drop(self._key(batch, position))

    @torch.no_grad()
    def _compute(self, batch: int, wanted: Collection[int]) -> dict[int, Flow]:
        """From the nearest kept flow upstream to the last wanted one; what will be wanted is kept on the way."""
        begin = max(self._kept(batch, range(min(wanted) + 1)), default=0)
        flow = self._store.get(self._key(batch, begin)) if begin else Flow(self._batches[batch])
        found = {}
        for position in range(begin, max(wanted) + 1):
            if position in wanted:
                found[position] = flow
            if position > begin and position in self._positions and self._store is not None:
                self._store.put(self._key(batch, position), flow)
            if position < max(wanted):
                flow = self._chain[position][1](flow)
        return found

    def _kept(self, batch: int, positions: Iterable[int]) -> list[int]:
        return [p for p in positions if self._store is not None and self._key(batch, p) in self._store]

    def _key(self, batch: int, position: int) -> tuple[int, int, int]:
        return id(self), batch, position
