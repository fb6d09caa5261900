#!/usr/bin/env bash
# nncf 3.4.0, openvino 2026.4.1: compress_weights(mode=INT4_SYM, ratio=1.0, all_layers=True), which says 4 bits for all
# layers, stores the weight of every convolution in 8 bits, 1x1 ones included, though those are the product that is
# stored in 4 bits if it is written as a matrix product. So a VAE or UNet of a diffusion model, made of convolutions,
# comes out at 8 bits, twice as large as asked for, and scored as if it were the 4-bit model. Nothing is raised; the
# table that is printed on the way names the modes' shares, not that what was asked for could not be done.
# Remedy: look at the element types of the constants (or at the file's size) before a score is called one of 4 bits.
#
# Seen (four layers with 64 channels and ReLU; types of the weights, bytes of the .bin file, bits per weight):
#   matrix product: i4 x 4, 8720, 4.26; convolution 1x1: u8 x 4, 17152, 8.38; convolution 3x3: u8 x 4, 148224, 8.04
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6
cat >check.py <<'PYTHON'
from pathlib import Path

import nncf
import numpy as np
import openvino
from openvino import opset13 as ops

CHANNELS, LAYERS = 64, 4
random = np.random.default_rng(0)
found = {}
for kind, shape in {
    "matrix product": (CHANNELS, CHANNELS),
    "convolution 1x1": (CHANNELS, CHANNELS, 1, 1),
    "convolution 3x3": (CHANNELS, CHANNELS, 3, 3),
}.items():
    pads = [shape[-1] // 2] * 2
    entry = ops.parameter([1, CHANNELS, CHANNELS] + [CHANNELS] * (len(shape) == 4), np.float32)
    values = entry
    for _ in range(LAYERS):
        weight = ops.constant(random.standard_normal(shape).astype(np.float32) / 8)
        product = (
            ops.matmul(values, weight, False, True)
            if len(shape) == 2
            else ops.convolution(values, weight, [1, 1], pads, pads, [1, 1])
        )
        values = ops.relu(product)
    model = openvino.Model([ops.result(values)], [entry])
    small = nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=CHANNELS, ratio=1.0, all_layers=True
    )
    types = [
        node.get_element_type().to_string()
        for node in small.get_ops()
        if node.get_type_name() == "Constant" and np.prod(node.shape) == np.prod(shape)
    ]
    openvino.save_model(small, "small.xml", compress_to_fp16=False)
    size = Path("small.bin").stat().st_size
    found[kind] = types
    print(f"{kind}: {' '.join(types)}, {size} bytes, {8 * size / np.prod(shape) / LAYERS:.2f} bits per weight")
assert found.pop("matrix product") == ["i4"] * LAYERS, "a matrix product is not stored in 4 bits now"
assert all(types == ["u8"] * LAYERS for types in found.values()), "convolutions are not stored in 8 bits now"
PYTHON
venv/bin/python -W ignore check.py | grep -E "bytes|now"
