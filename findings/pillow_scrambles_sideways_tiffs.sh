#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF of one uncompressed strip whose orientation is 5 to 8 (a portrait scan, a camera held upright)
# is read wrongly where it is opened by name: Pillow turns TIFFs itself, and has swapped width and height before it maps
# the pixels into memory, so rows of the file are taken for ones of the other length and then turned, and the shape
# stays that of the file. Nothing is raised. Greys, 16-bit greys, RGBA and CMYK, whose pixels can be mapped, are hit;
# RGB, compressed files and the same bytes through a file object, which has no name to map, are right.
# Remedy: open(path, "rb") as stream, Image.open(stream).
#
# Seen (6 rows of 4 pixels, orientation 6, which is right as 4 rows of 6):
#   by name: L, I;16, RGBA and CMYK wrong, (6, 4); RGB right, (4, 6); through a file object all right
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 pillow==13.0.0
cat >check.py <<'PYTHON'
import numpy as np
from PIL import Image

ORIENTATION = 274
values = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
stored = {
    "L": Image.fromarray(values[..., 0]),
    "I;16": Image.fromarray(values[..., 0].astype(np.uint16) * 257),
    "RGB": Image.fromarray(np.ascontiguousarray(values[..., :3])),
    "RGBA": Image.fromarray(values),
    "CMYK": Image.frombytes("CMYK", (4, 6), values.tobytes()),
}
for mode, image in stored.items():
    image.save("sideways.tif", tiffinfo={ORIENTATION: 6})
    upright = np.rot90(np.asarray(image), -1)
    with Image.open("sideways.tif") as opened:
        by_name = np.array(opened)
    with open("sideways.tif", "rb") as stream, Image.open(stream) as opened:
        by_stream = np.array(opened)
    right = [np.array_equal(found, upright) for found in (by_name, by_stream)]
    print(f"{mode}: by name {by_name.shape[:2]}, right: {right[0]}; through a file object right: {right[1]}")
    assert right == [mode == "RGB", True], "it behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
