#!/bin/sh
# pillow 13.0.0: of a grey TIFF whose 0 is white (PhotometricInterpretation 0, as scanners and microscopes write it) a
# file of 8 bits comes out as it looks, one of 16 bits as its negative, without a word. The same picture with black as 0
# is right in both.
#
# Seen (the first pixel is black): 8 bits 0 and 0; 16 bits black-is-zero 0, white-is-zero 65535
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cat >check.py <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

found = {}
for bits in (8, 16):
    kind, white = np.dtype(f"uint{bits}"), 2**bits - 1
    picture = np.linspace(0, white, 16).astype(kind).reshape(4, 4)  # black first
    for photometric, stored in (("minisblack", picture), ("miniswhite", (white - picture).astype(kind))):
        tifffile.imwrite("grey.tif", stored, photometric=photometric)
        with Image.open("grey.tif") as opened:
            assert opened.tag_v2[262] == (photometric == "minisblack")
            found[bits, photometric] = np.array_equal(np.asarray(opened), picture), int(np.asarray(opened)[0, 0])
print(found)
right = [found[8, "minisblack"], found[8, "miniswhite"], found[16, "minisblack"]]
assert right == [(True, 0)] * 3 and found[16, "miniswhite"] == (False, 65535), "behaves otherwise now"
PYTHON
venv/bin/python check.py
