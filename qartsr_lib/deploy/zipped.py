"""Packed files as they are and inside gzip, which takes a tenth off codes of 4 bits and four tenths off those of 2."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically

SUFFIX, ZIPPED = ".safetensors", ".safetensors.gz"
LARGEST = 100  # times its own size: what a .gz may unpack to; models come to 2 at most


def is_packed(path: Path) -> bool:
    """Whether a path is named as packed files are, SUFFIX or ZIPPED."""
    return path.name.lower().endswith((SUFFIX, ZIPPED))


def is_zipped(path: Path) -> bool:
    """Whether a path is named as a packed file inside gzip."""
    return path.name.lower().endswith(ZIPPED)


def zipped(content: bytes) -> bytes:
    """`content` inside gzip, the same bytes at any time."""
    return gzip.compress(content, mtime=0)


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """`path` itself; of a name that ends in ZIPPED the file inside, which is there as long as the context lasts.

    Raises:
        OSError, EOFError, zlib.error: not there, not gzip's, cut short or damaged.
        QartsrError: it unpacks to more than a model could, or the disk is full.
    """
    if not is_zipped(path):
        yield path
        return
    most = LARGEST * path.stat().st_size
    with gzip.open(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise QartsrError(f"{path}: unpacks to more than {LARGEST} times its size; no packed model does")
    with tempfile.TemporaryDirectory() as folder:
        yield write_atomically(Path(folder, f"model{SUFFIX}"), lambda temporary: temporary.write_bytes(content))
