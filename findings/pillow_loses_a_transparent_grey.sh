#!/usr/bin/env bash
# pillow 13.0.0 (numpy 2.4.6): of a grey PNG with 2 or 4 bits a pixel, one of whose greys is transparent (chunk tRNS),
# the transparency is lost without a word. Pillow widens the pixels to 0 to 255, but leaves the transparent level as it
# stands in the file, 0 to 3 or 0 to 15; so convert("RGBA") finds no such pixel, and unless the level is that of black,
# nothing is transparent. The same picture with 1 or 8 bits a pixel comes out as it looks.
# Remedy: multiply info["transparency"] by 85 (2 bits) or 17 (4 bits) after loading; the raw mode in `tile` tells which.
#
# Seen (8 pixels, the left half white and transparent):
#   1 bit:  alpha 0 0 0 0 255 255 255 255     2 bits: 255 in all     4 bits: 255 in all
#   8 bits: alpha 0 0 0 0 255 255 255 255
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pillow==13.0.0 numpy==2.4.6
cat >check.py <<'PYTHON'
import struct
import zlib

import numpy as np
from PIL import Image


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def half_transparent(bits):
    """Alpha of a row of 4 white pixels, the transparent grey, and 4 black ones."""
    white = 2**bits - 1
    row = int("".join(f"{level:0{bits}b}" for level in [white] * 4 + [0] * 4), 2).to_bytes(bits, "big")
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", white))
    parts += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    with open("grey.png", "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n" + parts)
    with Image.open("grey.png") as opened:
        rgba = np.asarray(opened.convert("RGBA"))[0]
    assert rgba[:, 0].tolist() == [255] * 4 + [0] * 4, "the greys are as they look"
    return rgba[:, 3].tolist()


seen = {bits: half_transparent(bits) for bits in (1, 2, 4, 8)}
for bits, alpha in seen.items():
    print(f"{bits} bits: alpha", *alpha)
right = [0] * 4 + [255] * 4
assert seen[1] == seen[8] == right, "1 and 8 bits behave otherwise now"
assert seen[2] == seen[4] == [255] * 8, "2 and 4 bits behave otherwise now"
PYTHON
venv/bin/python check.py
