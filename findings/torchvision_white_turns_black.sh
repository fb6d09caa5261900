#!/usr/bin/env bash
# torchvision 0.29.2 (torch 2.15.0): to_dtype(..., torch.uint8, scale=True), ToDtype and convert_image_dtype multiply
# floats by 255.999 and cut the fraction off. Half precision has no number 255.999: float16 and bfloat16 make 256 of it,
# which has no place in a byte, and the white of a network's output becomes black, with no warning. In float32 nothing
# wraps, but a quarter of random values becomes another level than the nearest. to_pil_image beside it rounds down:
# pictures half a level darker in the mean, with four times the squared error of rounding. Bytes that were read and
# divided by 255 survive both in float32, so a round trip of a file shows none of this.
# Remedy: image.float().mul(255).round().clamp(0, 255).to(torch.uint8).
#
# Seen:
#   levels of the greys 0, 0.5, 0.996 and 1 by to_dtype, ToDtype and convert_image_dtype:
#     float16 and bfloat16 [0, 128, 255, 0], float32 [0, 127, 254, 255]
#   three million random values in float32: to_dtype is off the nearest level in 25 %, to_pil_image in 50 %,
#     0.50 levels darker; PSNR of rounding 58.9, of to_pil_image 52.9 dB
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 pillow==13.0.0
cat >check.py <<'PYTHON'
import math

import numpy as np
import torch
from torchvision.transforms import functional as old
from torchvision.transforms.v2 import ToDtype
from torchvision.transforms.v2 import functional as new

ways = {
    "to_dtype": lambda image: new.to_dtype(image, torch.uint8, scale=True),
    "ToDtype": ToDtype(torch.uint8, scale=True),
    "convert_image_dtype": lambda image: old.convert_image_dtype(image, torch.uint8),
}
seen = {}
for kind in (torch.float16, torch.bfloat16, torch.float32):
    greys = torch.tensor([0, 0.5, 0.996, 1]).to(kind).expand(3, 1, 4)
    seen[kind] = {tuple(way(greys)[0, 0].tolist()) for way in ways.values()}
    print(kind, seen[kind])

image = torch.rand(3, 1000, 1000, generator=torch.Generator().manual_seed(0))
nearest = image.double().mul(255).round()
scaled = new.to_dtype(image, torch.uint8, scale=True).double()
cut = torch.from_numpy(np.array(old.to_pil_image(image))).movedim(-1, 0).double()
wrong = [round(float((levels != nearest).double().mean()), 2) for levels in (scaled, cut)]
darker = round(float((image.double() * 255 - cut).mean()), 2)
psnr = [round(-10 * math.log10(float((levels / 255 - image).square().mean())), 1) for levels in (nearest, cut)]
print("off the nearest level:", wrong, "darker by", darker, "PSNR of rounding and of to_pil_image:", psnr)
assert seen[torch.float16] == seen[torch.bfloat16] == {(0, 128, 255, 0)}, "half precision behaves otherwise now"
assert seen[torch.float32] == {(0, 127, 254, 255)}, "float32 behaves otherwise now"
assert (wrong, darker, psnr) == ([0.25, 0.5], 0.5, [58.9, 52.9]), "float32 behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
