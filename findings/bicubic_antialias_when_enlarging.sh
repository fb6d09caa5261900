#!/usr/bin/env bash
# torch 2.13.0 (Pillow 12.3.0): interpolate(mode="bicubic", antialias=True) differs from antialias=False where an image is
# made larger, though nothing there can alias: the two have different cubics, a = -0.5 (Keys, Pillow, MATLAB's imresize)
# with antialiasing and a = -0.75 (OpenCV) without. With mode="bilinear" the switch does nothing when enlarging, as one
# would guess. In super-resolution the enlarged picture is the bicubic baseline and what OSEDiff's encoder is given; the
# two lie 42 dB apart on a texture, and only one of them is what the published tables' baseline is.
#
# Seen (four times, a texture of 16x16 pixels, largest difference of values in [0, 1]):
#   with and without antialias: bilinear 0.000000, bicubic 0.019762 (41.9 dB)
#   Pillow's BICUBIC to bicubic with antialias 0.000000, without 0.019762; a cubic written out, a = -0.75: 0.000000
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 pillow==12.3.0
cat >check.py <<'PYTHON'
import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate


def enlarged(mode, antialias):
    return interpolate(image[None, None], scale_factor=4, mode=mode, antialias=antialias)[0, 0]


def cubic(a):
    """(64, 16): four taps for each of 64 pixels out of 16, by the piecewise cubic with this a; edges repeat."""
    table = torch.zeros(64, 16, dtype=torch.float64)
    for row in range(64):
        centre = (row + 0.5) / 4 - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - tap)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            table[row, min(max(tap, 0), 15)] += near if x <= 1 else far
    return table


row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
image = 0.5 + 0.2 * torch.sin(1.1 * row) + 0.2 * torch.sin(0.7 * column + 0.3 * row)
without, smooth = enlarged("bicubic", False), enlarged("bicubic", True)
pillow = torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize((64, 64), Image.Resampling.BICUBIC)))
written = (cubic(-0.75) @ image.double() @ cubic(-0.75).T).float()
bilinear = float((enlarged("bilinear", False) - enlarged("bilinear", True)).abs().max())
bicubic, apart = float((without - smooth).abs().max()), -10 * float((without - smooth).square().mean().log10())
to_pillow = [float((pillow - other).abs().max()) for other in (smooth, without)]
closed = float((written - without).abs().max())
print(f"with and without antialias: bilinear {bilinear:.6f}, bicubic {bicubic:.6f} ({apart:.1f} dB)")
print("Pillow's BICUBIC to bicubic with antialias {:.6f}, without {:.6f};".format(*to_pillow), end=" ")
print(f"a cubic written out, a = -0.75: {closed:.6f}")
assert bilinear < 1e-5 and bicubic > 0.01 and to_pillow[0] < 1e-5 and to_pillow[1] > 0.01 and closed < 1e-5, "otherwise now"
PYTHON
venv/bin/python check.py
