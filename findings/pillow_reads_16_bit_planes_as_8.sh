#!/usr/bin/env bash
# Pillow 13.0.0 (tifffile 2026.3.3, numpy 2.4.6): an uncompressed TIFF with 16-bit colours in separate planes
# (PlanarConfiguration 2, as microscopes, scanners and tifffile's planarconfig="separate" write it) is read as if its
# planes had 8 bits: low and high bytes become neighbouring pixels, so that the picture is the upper half, twice as wide,
# striped. Mode and size are right, and nothing is said. The same planes compressed, planes of 8 bits, and 16-bit colours
# side by side are read right, by their upper 8 bits.
# Remedy: read such files with tifffile, or refuse them (tags 284 and 258, no compression).
#
# Seen (8x12 pixels of random colours, largest difference from the upper bytes):
#   RGB (12, 8) each: interleaved 0, planes with zlib 0, planes of 8 bits 0, planes of 16 bits 244
#   the first row of red is the low and high bytes of its first six pixels: True
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cat >check.py <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

colours = np.random.default_rng(0).integers(0, 1 << 16, (8, 12, 3), np.uint16)
upper = (colours >> 8).astype(np.uint8)
planes = {"photometric": "rgb", "planarconfig": "separate"}
files = {
    "interleaved": (colours, {"photometric": "rgb"}),
    "planes with zlib": (np.moveaxis(colours, -1, 0), planes | {"compression": "zlib"}),
    "planes of 8 bits": (np.moveaxis(upper, -1, 0), planes),
    "planes of 16 bits": (np.moveaxis(colours, -1, 0), planes),
}
found = {}
for name, (values, how) in files.items():
    tifffile.imwrite("one.tif", values, **how)
    with Image.open("one.tif") as opened:
        kind, pixels = (opened.mode, opened.size), np.asarray(opened)
    assert kind == ("RGB", (12, 8)), "it tells that it cannot read it now"
    found[name] = int(np.abs(pixels.astype(int) - upper).max())
    print(name, *kind, found[name])
swapped = np.array_equal(pixels[0, :, 0], colours[0, :6, 0].astype("<u2").view(np.uint8))
print("the first row of red is the bytes of its first six pixels:", swapped)
assert found.pop("planes of 16 bits") > 128 and not any(found.values()) and swapped, "it is read another way now"
PYTHON
venv/bin/python -W ignore check.py
