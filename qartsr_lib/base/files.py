"""What is asked of a file's bytes: their sha256, and that they are on disk."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path


def sha256(path: str | Path) -> str:
    """sha256 of a file, read now: tells a damaged file from a whole one."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: str | Path) -> str:
    """sha256 of a file, remembered while its size and time of change stay the same."""
    path = Path(path)
    status = path.stat()
    return _remembered(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8192)
def _remembered(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def flush(path: str | Path) -> None:
    """Return when the bytes of a file are on disk."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())
