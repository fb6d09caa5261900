#!/usr/bin/env bash
# torchvision 0.29.2 (torch 2.15.0, pillow 13.0.0): ToTensor and to_tensor give a 16-bit grey image (mode I;16, as a PNG
# or TIFF of that depth is opened) as int16, so that the brighter half of all greys is negative: 32768 becomes
# -32768 and white -1. Nor is it scaled to [0, 1], as 8-bit images are. Made a picture by convert_image_dtype, white is
# the darkest grey but black. PILToTensor, v2.ToImage and decode_image give uint16 and the right numbers.
# Remedy: v2.ToImage and v2.ToDtype(torch.float32, scale=True), or decode_image.
#
# Seen (greys 0, 1000, 32767, 32768, 65535 of a PNG):
#   ToTensor                            0    1000   32767  -32768      -1
#   ToTensor, convert_image_dtype  0.0000  0.0305  1.0000 -1.0000 -0.0000
#   PILToTensor, decode_image           0    1000   32767   32768   65535
#   v2.ToImage, v2.ToDtype         0.0000  0.0153  0.5000  0.5000  1.0000
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
import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms import ConvertImageDtype, PILToTensor, ToTensor, v2

GREYS = [0, 1000, 32767, 32768, 65535]
Image.fromarray(np.array([GREYS], dtype=np.uint16)).save("greys.png")
image = Image.open("greys.png")
assert image.mode == "I;16"

seen = {
    "ToTensor": ToTensor()(image),
    "ToTensor, convert_image_dtype": ConvertImageDtype(torch.float32)(ToTensor()(image)),
    "PILToTensor": PILToTensor()(image),
    "decode_image": decode_image("greys.png"),
    "v2.ToImage, v2.ToDtype": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(image),
}
seen = {name: tensor.flatten().tolist() for name, tensor in seen.items()}
for name, values in seen.items():
    print(f"{name:29}", *(f"{value:7.4f}" if isinstance(value, float) else f"{value:7}" for value in values))
assert seen["ToTensor"] == [0, 1000, 32767, -32768, -1]
assert -1e-4 < seen["ToTensor, convert_image_dtype"][-1] < 0, "white, just below black"
assert seen["PILToTensor"] == seen["decode_image"] == GREYS
assert np.allclose(seen["v2.ToImage, v2.ToDtype"], np.array(GREYS) / 65535, atol=1e-6)
PYTHON
venv/bin/python -W ignore check.py
