"""What flows between the blocks of a chain that does not change: computed once and kept while there is room."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qartsr_lib.backbones.steps import Flow, Step
from qartsr_lib.training.finetuning.phases import UNET_END, Phase, Term

MEMORY_SHARE = 0.5
"""Of the memory that is free when a run begins, what it may keep flows in."""
_UNKNOWN_MEMORY = 4 * 2**30  # bytes, where the system does not tell


def free_memory() -> float:
    """Bytes that this process may still take: of the machine, and of the container where there is one."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(re.search(r"MemAvailable:\s*(\d+)", told)[1]) * 1024
    except (OSError, TypeError):
        return _UNKNOWN_MEMORY
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" where there is none
        return min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return free


@dataclass
class Room:
    """Bytes of memory in which flows may still be kept."""

    left: float = field(default_factory=lambda: MEMORY_SHARE * free_memory())


@dataclass(frozen=True)
class Part:
    """A phase on a network: what is quantized and trained by then, where it is entered, and its terms' positions."""

    phase: Phase
    quantized: Sequence[str]
    trained: Sequence[str]
    entry: int
    terms: Sequence[tuple[Term, int]]


def wanted_by(parts: Sequence[Part]) -> set[int]:
    """Positions at which phases enter or compare."""
    return {part.entry for part in parts} | {position for part in parts for _, position in part.terms}


@dataclass(frozen=True)
class Network:
    """A backbone as a chain of steps (backbones.steps.steps), and the upscaled batches for it, (N, 3, H, W) each."""

    chain: Sequence[tuple[str, Step]]
    upscaled: Sequence[torch.Tensor]

    @property
    def names(self) -> list[str]:
        """Names of the blocks in inference order."""
        return [name for name, _ in self.chain]

    def position(self, term: Term) -> int:
        """Index of the step before which the quantity of `term` is there; len(chain) for the image."""
        if term.quantity == "image":
            return len(self.chain)
        return self.names.index(UNET_END if term.quantity == "noise" else term.after) + 1

    def parts(self, phases: Sequence[Phase]) -> list[Part]:
        """`phases` on this network, which is entered at the first trained block."""
        parts, quantized = [], ()
        for phase in phases:
            quantized = (*quantized, *phase.blocks)
            trained = quantized if phase.trained is None else phase.trained
            terms = [(term, self.position(term)) for term in phase.terms]
            parts.append(Part(phase, quantized, trained, min(map(self.names.index, trained)), terms))
        return parts


class Flows:
    """What flows into chosen steps of a network that does not change; the same bits, kept or computed again.

    Args:
        positions: the steps whose input will be wanted; len(chain) is the image.
        room: where there is no more, a flow is computed from the nearest one kept upstream.
    """

    def __init__(self, network: Network, positions: Iterable[int], room: Room) -> None:
        self._network, self._positions, self._room = network, set(positions), room
        self._kept: dict[tuple[int, int], Flow] = {}  # in the CPU's memory; a GPU's own is for the training

    def at(self, batch: int, positions: Collection[int]) -> dict[int, Flow]:
        """Position -> flow of batch number `batch`."""
        found = {position: self._get(batch, position) for position in positions if (batch, position) in self._kept}
        missing = set(positions) - set(found)
        return found | (self._compute(batch, missing) if missing else {})

    def narrow(self, positions: Iterable[int]) -> None:
        """Only `positions` will be wanted from now on: let go of the others."""
        self._positions &= set(positions)
        for key in [key for key in self._kept if key[1] not in self._positions]:
            self._room.left += _size(self._kept.pop(key))

    @torch.no_grad()
    def _compute(self, batch: int, wanted: Collection[int]) -> dict[int, Flow]:
        """From the nearest kept flow upstream to the last wanted one; what will be wanted is kept on the way."""
        begin = max((position for position in range(min(wanted) + 1) if (batch, position) in self._kept), default=0)
        flow = self._get(batch, begin) if begin else Flow(self._network.upscaled[batch])
        found = {}
        for position in range(begin, max(wanted) + 1):
            if position in wanted:
                found[position] = flow
            if position > begin and position in self._positions:
                self._keep(batch, position, flow)
            if position < max(wanted):
                flow = self._network.chain[position][1](flow)
        return found

    def _get(self, batch: int, position: int) -> Flow:
        return self._kept[batch, position].to(self._network.upscaled[batch].device)

    def _keep(self, batch: int, position: int, flow: Flow) -> None:
        if (batch, position) not in self._kept and _size(flow) <= self._room.left:
            self._kept[batch, position] = flow.to("cpu")
            self._room.left -= _size(flow)


def _size(flow: Flow) -> int:
    return sum(tensor.nbytes for tensor in flow.tensors())
