"""Our stamp in a PNG: how the picture was made, and whether the file was changed since."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import putchunk

_KIND, _KEYWORD = b"tEXt", b"qartsr\0"
#: Bytes of a PNG's signature and its first chunk, behind which the stamp stands: length, kind, content, CRC.
_HEAD = 33
_START = _HEAD + 8


def stamped_png(pixels: np.ndarray, stamp: str) -> bytes:
    """A PNG of (H, W, 3 or 4) uint8, with a text chunk "qartsr": `stamp`, and the sha256 of all other bytes."""
    image, chunk = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(image, format="PNG")
    plain = image.getvalue()
    putchunk(chunk, _KIND, _KEYWORD, f"{stamp} {hashlib.sha256(plain).hexdigest()}".encode("ascii"))
    return plain[:_HEAD] + chunk.getvalue() + plain[_HEAD:]


def read_stamp(path: Path) -> str | None:
    """The stamp of a file that `stamped_png` made; None for any other, and for one that was changed since."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(_START + len(_KEYWORD))
            if data[_HEAD + 4 :] != _KIND + _KEYWORD:
                return None
            data += stream.read()
    except OSError:
        return None
    end = _START + int.from_bytes(data[_HEAD : _HEAD + 4], "big")
    stamp, _, digest = data[_START + len(_KEYWORD) : end].decode("latin-1").rpartition(" ")
    return stamp if digest == hashlib.sha256(data[:_HEAD] + data[end + 4 :]).hexdigest() else None
