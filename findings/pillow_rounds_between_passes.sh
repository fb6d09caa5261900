#!/usr/bin/env bash
# Pillow 12.3.0 (numpy 2.4.6): Image.resize of 8-bit images rounds twice, to whole grey levels after its horizontal pass
# and again after the vertical one. So it is not the bicubic picture rounded: enlarged four times, as OSEDiff's input is,
# a fifth of the pixels are one level off from the float picture rounded once, and from MATLAB-like or PyTorch resizing in
# floating point. The same filter in mode "F", rounded by hand after each pass, widths first, gives the same bits; heights
# first does not. Where one side stays, all agree. Low-quality sets made by Pillow in 8 bits can be had again only
# by Pillow's order of passes.
#
# Seen (a noisy texture of 160x128 pixels, bicubic):
#   40x32: once 9.3% of pixels differ, twice 0.0%, twice heights first 15.3%
#   640x512: once 22.1% of pixels differ, twice 0.0%, twice heights first 26.5%
#   40x128: once 0.0% of pixels differ, twice 0.0%, twice heights first 0.0%
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 pillow==12.3.0
cat >check.py <<'PYTHON'
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 160, 128
row, column = np.mgrid[0:HEIGHT, 0:WIDTH]
texture = 128 + 50 * np.sin(row / 5 + column / 9) + 40 * np.cos(column / 3)
texture += np.random.default_rng(0).normal(0, 12, texture.shape)
texture = texture.clip(0, 255).round().astype(np.uint8)


def resized(image, *size):
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def levels(image):
    return np.floor(image.clip(0, 255) + 0.5)


def in_float(image, *size):
    return levels(resized(image.astype(np.float32), *size))


shares = {}
for size in ((40, 32), (640, 512), (40, 128)):
    width, height = size
    own = resized(texture, *size)
    others = in_float(texture, *size), in_float(in_float(texture, width, HEIGHT), *size)
    others += (in_float(in_float(texture, WIDTH, height), *size),)
    shares[size] = [100 * np.mean(own != other) for other in others]
    print("{}x{}: once {:.1f}% of pixels differ, twice {:.1f}%, twice heights first {:.1f}%".format(*size, *shares[size]))
for size in ((40, 32), (640, 512)):
    once, twice, other = shares[size]
    assert once > 5 and twice < 0.1 and other > 5, "Pillow rounds otherwise now"
assert max(shares[40, 128]) < 0.1, "one pass rounds otherwise now"
PYTHON
venv/bin/python check.py
