#!/usr/bin/env bash
# basicsr 1.4.2 (torch 2.13.0, Pillow 12.3.0): DiffJPEG, the JPEG of Real-ESRGAN's training pipeline and of what trains by
# it (StableSR, SeeSR, OSEDiff), compresses an image as JPEG compresses the image turned by its diagonal. Its luminance
# table is the standard's transposed, while its blocks are not: horizontal detail is coarsened as vertical detail should
# be, and the other way round. So a network that is trained by it sees other artefacts than JPEG files have. Compared
# with libjpeg at the same quality (grey, so that colours are not halved in size), it differs by as much as libjpeg's two
# orientations differ from each other; transposed before and after, by rounding. (Issue 2 of mlomnitz/DiffJPEG, where the
# code is from, doubts the table and is answered that it is right.)
#
# Seen (mean difference in grey levels over a texture of 64x64 pixels, quality 50):
#   to libjpeg: 4.19, to libjpeg of the transposed image: 0.38, between libjpeg's two: 4.18
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 pillow==12.3.0 wheel cython
venv/bin/pip install --quiet "setuptools<81"  # basicsr's setup imports what newer ones lack
venv/bin/pip install --quiet --no-deps --no-build-isolation basicsr==1.4.2
cat >check.py <<'PYTHON'
import importlib.util
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

package = Path(importlib.util.find_spec("basicsr").submodule_search_locations[0])  # whole, it needs more packages
spec = importlib.util.spec_from_file_location("diffjpeg", package / "utils" / "diffjpeg.py")
diffjpeg = importlib.util.module_from_spec(spec)
spec.loader.exec_module(diffjpeg)

rng = np.random.default_rng(0)
row, column = np.mgrid[0:64, 0:64]
texture = 128 + 30 * np.sin(1.9 * column) + 30 * np.sin(1.1 * row + 1) + 12 * rng.standard_normal((64, 64))
texture = texture.clip(0, 255).round().astype(np.uint8)


def libjpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer)).astype(float)


tensor = torch.from_numpy(texture.astype(np.float32) / 255)[None, None].repeat(1, 3, 1, 1)
with torch.no_grad():
    found = 255 * diffjpeg.DiffJPEG(differentiable=False)(tensor, quality=50)[0, 0].numpy()
straight, turned = libjpeg(texture), libjpeg(texture.T).T
apart = [float(np.abs(a - b).mean()) for a, b in ((found, straight), (found, turned), (straight, turned))]
print("to libjpeg: {:.2f}, to libjpeg of the transposed image: {:.2f}, between libjpeg's two: {:.2f}".format(*apart))
assert apart[0] > 4 and apart[2] > 4 and apart[1] < 0.5, "DiffJPEG behaves otherwise now"
PYTHON
venv/bin/python check.py
