"""PNG files that say what they were made from, and are told from those that somebody changed since."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

_KIND, _KEYWORD = b"tEXt", b"qartsr\0"
_HEAD = 33  # bytes of a PNG's signature and its first chunk, behind which the stamp stands


def stamped_png(pixels: np.ndarray, stamp: str) -> bytes:
    """An 8-bit PNG with a text chunk "qartsr": `stamp` and the sha256 of all other bytes of the file.

    Args:
        pixels: (H, W, 3) or (H, W, 4) uint8.
        stamp: ASCII.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    plain = buffer.getvalue()
    content = _KEYWORD + f"{stamp} {hashlib.sha256(plain).hexdigest()}".encode("ascii")
    check = zlib.crc32(_KIND + content)
    chunk = struct.pack(">I", len(content)) + _KIND + content + struct.pack(">I", check)
    return plain[:_HEAD] + chunk + plain[_HEAD:]


def read_stamp(path: Path) -> str | None:
    """The stamp of a file that `stamped_png` made; None for any other, and for one that was changed since."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(_HEAD + 8 + len(_KEYWORD))
            if data[_HEAD + 4 :] != _KIND + _KEYWORD:
                return None
            data += stream.read()
    except OSError:
        return None
    start = _HEAD + 8
    end = start + int.from_bytes(data[_HEAD : _HEAD + 4], "big")
    stamp, _, digest = data[start + len(_KEYWORD) : end].decode("latin-1").rpartition(" ")
    plain = hashlib.sha256(data[:_HEAD] + data[end + 4 :])
    return stamp if digest == plain.hexdigest() else None
