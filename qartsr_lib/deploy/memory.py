"""Memory of a process: kept for its next image where the C library lets it, and measured at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process instead of going back to the system after every operation.

    By default glibc asks the system for every large tensor anew, and touching new pages costs more than
    many operations do: full precision and low bits alike gain a quarter and more. Peaks stay as they are.

    Returns:
        Whether the C library understood; others than glibc do not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_bytes_of(call: Callable[[], object]) -> int | None:
    """How far `call` raises this process's resident memory at its highest; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024
