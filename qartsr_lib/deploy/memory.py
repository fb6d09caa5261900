"""Memory that a process keeps for its next image, where the C library lets it."""

from __future__ import annotations

import ctypes

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
