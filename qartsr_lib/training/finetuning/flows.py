"""What flows between the blocks of a chain that does not change: computed once and kept where there is room."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qartsr_lib.backbones.steps import Flow, Step
from qartsr_lib.training.finetuning.phases import UNET_END, Term

GIB = 2**30
#: Of the memory and of the disk that are free when a run begins, what it may keep flows in.
MEMORY_SHARE, FILES_SHARE = 0.5, 0.25
_UNKNOWN_MEMORY = 4 * GIB  # where the system does not tell


class FlowStore:
    """Flows by key; `get` returns the bits that were put in, on the device they came from.

    Args:
        memory: bytes of flows that may lie in memory.
        files: bytes that may lie in files beyond that, in a temporary folder that goes with the store.
        folder: where that folder is made; the system's own place by default.
    """

    def __init__(self, memory: float | None = None, files: float | None = None, folder: Path | None = None) -> None:
        self.memory_left = MEMORY_SHARE * free_memory() if memory is None else memory
        self.files_left = FILES_SHARE * shutil.disk_usage(tempfile.gettempdir()).free if files is None else files
        self._parent, self._numbers = folder, itertools.count()
        self._folder: tempfile.TemporaryDirectory | None = None
        self._kept: dict[Hashable, tuple[Flow | Path, torch.device, int]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def put(self, key: Hashable, flow: Flow) -> bool:
        """Keep `flow`, which nobody may change afterwards; False where no room is left for it."""
        size, kept = sum(tensor.nbytes for tensor in flow.tensors()), None
        if size <= self.memory_left:
            kept = flow.to("cpu")  # a GPU's own memory is for the training
            self.memory_left -= size
        elif size <= self.files_left:
            kept = self._written(flow.to("cpu"))
            self.files_left -= size if kept else 0
        if kept is not None:
            self._kept[key] = kept, flow.x.device, size
        return kept is not None

    def get(self, key: Hashable) -> Flow:
        """The flow that was put in; KeyError where it was not kept."""
        kept, device, _ = self._kept[key]
        if isinstance(kept, Path):
            kept = Flow(*torch.load(kept, weights_only=True))
        return kept.to(device)

    def drop(self, key: Hashable) -> None:
        """Free what `key` holds, if anything."""
        kept, _, size = self._kept.pop(key, (None, None, 0))
        if isinstance(kept, Path):
            kept.unlink(missing_ok=True)
            self.files_left += size
        else:
            self.memory_left += size

    def _written(self, flow: Flow) -> Path | None:
        """The new file; None, and no further try, where it cannot be written."""
        path = None
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="qartsr-flows-", dir=self._parent)
            path = Path(self._folder.name, f"{next(self._numbers)}.pt")
            torch.save(tuple(flow), path)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            print(f"no more intermediate results on disk ({error}); they are computed again instead", flush=True)
            self.files_left = 0
            if path is not None:
                path.unlink(missing_ok=True)
            return None
        return path


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


@dataclass(frozen=True)
class Network:
    """A chain of steps and the batches that pass through it.

    Attributes:
        chain: (block name, step) in inference order.
        upscaled: network inputs, (N, 3, H, W) each.
    """

    chain: Sequence[tuple[str, Step]]
    upscaled: Sequence[torch.Tensor]

    @property
    def names(self) -> list[str]:
        """Names of the blocks in inference order."""
        return [name for name, _ in self.chain]

    def entry(self, blocks: Sequence[str]) -> int:
        """Index of the first of `blocks` in the chain."""
        return min(self.names.index(name) for name in blocks)

    def position(self, term: Term) -> int:
        """Index of the step before which the quantity of `term` is there; len(chain) for the image."""
        if term.quantity == "image":
            return len(self.chain)
        return self.names.index(UNET_END if term.quantity == "noise" else term.after) + 1


class Flows:
    """What flows into chosen steps of a network that does not change.

    Args:
        positions: the steps whose input will be wanted; len(chain) is the image.
        store: keeps them, so that each is computed once where it has room, else from the nearest one kept upstream.
    """

    def __init__(self, network: Network, positions: Iterable[int], store: FlowStore) -> None:
        self._network, self._positions, self._store = network, set(positions), store

    def at(self, batch: int, positions: Collection[int]) -> dict[int, Flow]:
        """Position -> flow of batch number `batch`."""
        found = {position: self._store.get(self._key(batch, position)) for position in self._kept(batch, positions)}
        missing = set(positions) - set(found)
        return found | (self._compute(batch, missing) if missing else {})

    def narrow(self, positions: Iterable[int]) -> None:
        """Only `positions` will be wanted from now on: let go of the others."""
        gone = self._positions - set(positions)
        self._positions -= gone
        for position in gone:
            for batch in range(len(self._network.upscaled)):
                self._store.drop(self._key(batch, position))

    @torch.no_grad()
    def _compute(self, batch: int, wanted: Collection[int]) -> dict[int, Flow]:
        """From the nearest kept flow upstream to the last wanted one; what will be wanted is kept on the way."""
        begin = max(self._kept(batch, range(min(wanted) + 1)), default=0)
        flow = self._store.get(self._key(batch, begin)) if begin else Flow(self._network.upscaled[batch])
        found = {}
        for position in range(begin, max(wanted) + 1):
            if position in wanted:
                found[position] = flow
            if position > begin and position in self._positions:
                self._store.put(self._key(batch, position), flow)
            if position < max(wanted):
                flow = self._network.chain[position][1](flow)
        return found

    def _kept(self, batch: int, positions: Iterable[int]) -> list[int]:
        return [position for position in positions if self._key(batch, position) in self._store]

    def _key(self, batch: int, position: int) -> tuple[int, int, int]:
        return id(self), batch, position
