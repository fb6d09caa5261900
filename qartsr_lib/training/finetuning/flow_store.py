"""Where kept flows lie: in memory up to a limit, then in files up to another; what fits nowhere is not kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path

import torch

from qartsr_lib.backbones.steps import Flow
from qartsr_lib.base.errors import QartsrError

GIB = 2**30
MEMORY_VARIABLE, FILES_VARIABLE = "QARTSR_KEEP_GIB", "QARTSR_SPILL_GIB"
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

    def __init__(self, memory: float, files: float = 0, folder: Path | None = None) -> None:
        self.memory_left, self.files_left = memory, files
        self._parent = folder
        self._folder: tempfile.TemporaryDirectory | None = None
        self._in_memory: dict[Hashable, tuple[Flow, torch.device]] = {}
        self._in_files: dict[Hashable, tuple[Path, torch.device]] = {}
        self._sizes: dict[Hashable, int] = {}
        self._written = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sizes

    def put(self, key: Hashable, flow: Flow) -> bool:
        """Keep `flow`, which nobody may change afterwards; False where no room is left for it."""
        size, device = sum(tensor.nbytes for tensor in flow.tensors()), flow.x.device
        if size <= self.memory_left:
            self._in_memory[key] = flow.to("cpu"), device  # a GPU's own memory is for the training
            self.memory_left -= size
        elif size <= self.files_left and (path := self._write(flow.to("cpu"))) is not None:
            self._in_files[key] = path, device
            self.files_left -= size
        else:
            return False
        self._sizes[key] = size
        return True

    def get(self, key: Hashable) -> Flow:
        """The flow that was put in.

        Raises:
            KeyError: it was not kept.
        """
        if key in self._in_memory:
            flow, device = self._in_memory[key]
            return flow.to(device)
        path, device = self._in_files[key]
        parts = torch.load(path, weights_only=True)
        return Flow(**parts | {"skips": tuple(parts["skips"])}).to(device)

    def drop(self, key: Hashable) -> None:
        """Free what `key` holds, if anything."""
        size = self._sizes.pop(key, 0)
        if self._in_memory.pop(key, None) is not None:
            self.memory_left += size
        elif key in self._in_files:
            self._in_files.pop(key)[0].unlink(missing_ok=True)
            self.files_left += size

    def _write(self, flow: Flow) -> Path | None:
        """The new file; None, and no further try, where it cannot be written."""
        parts = {name: getattr(flow, name) for name in ("x", "z_l", "embedding", "eps")} | {"skips": list(flow.skips)}
        path = None
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="qartsr-flows-", dir=self._parent)
            self._written += 1
            path = Path(self._folder.name, f"{self._written}.pt")
            torch.save(parts, path)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            print(f"no more intermediate results on disk ({error}); they are computed again instead", flush=True)
            self.files_left = 0
            if path is not None:
                path.unlink(missing_ok=True)
            return None
        return path


def default_store() -> FlowStore:
    """Half of the free memory and a quarter of the free disk, or QARTSR_KEEP_GIB and QARTSR_SPILL_GIB.

    Raises:
        QartsrError: one of the two variables is not a number.
    """
    memory = _from_environment(MEMORY_VARIABLE)
    files = _from_environment(FILES_VARIABLE)
    if files is None:
        files = FILES_SHARE * shutil.disk_usage(tempfile.gettempdir()).free
    return FlowStore(MEMORY_SHARE * free_memory() if memory is None else memory, files)


def free_memory() -> float:
    """Bytes that this process may still take: of the machine, and of the container where there is one."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _UNKNOWN_MEMORY
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" where there is none
        return min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return free


def _from_environment(name: str) -> float | None:
    value = os.environ.get(name)
    if not value:
        return None
    try:
        gibibytes = float(value)
    except ValueError:
        gibibytes = -1.0
    if not gibibytes >= 0:
        raise QartsrError(f"{name}={value!r}: give gibibytes as a number, 0 for none")
    return gibibytes * GIB
