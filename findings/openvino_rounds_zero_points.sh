#!/bin/sh
# openvino 2026.4.1, CPU plugin: FakeQuantize whose zero is no level (0 lies between two, as with a zero point of 7.5) is
# computed exactly, until a convolution with integer weights follows: then the product is made of 8-bit integers with the
# zero point rounded to one, without a warning, even under INFERENCE_PRECISION_HINT f32. The same input quantized by
# Subtract and Multiply of integer codes is not treated so.
#
# Seen (root mean square error of a 3x3 convolution over the exact result's size; zero point 7.5, and 7 beside it):
#   16 levels: 7.5 alone 0.0000, behind the convolution 0.0847; 7 behind the convolution 0.0000
#   256 levels: 7.5 alone 0.0000, behind the convolution 0.0033; 7 behind the convolution 0.0000
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet openvino==2026.4.1 numpy==2.4.6
cat >check.py <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

SCALE, STEP = np.float32(0.1), np.float32(0.02)
rng = np.random.default_rng(0)
weight = rng.integers(-7, 8, (8, 8, 3, 3)).astype(np.int8)


def computed(node, entry, x):
    model = openvino.Model([node], [entry])
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


def errors(levels, zero):
    codes = rng.integers(0, levels, (1, 8, 16, 16)).astype(np.float32)
    x = (codes - np.float32(zero)) * SCALE  # lies on levels
    low, high = ((np.float32(end) - np.float32(zero)) * SCALE for end in (0, levels - 1))
    entry = ops.parameter(x.shape, np.float32)
    quantized = ops.fake_quantize(entry, low, high, low, high, levels)
    kernel = ops.multiply(ops.convert(ops.constant(weight), "f32"), ops.constant(STEP))
    product = ops.convolution(quantized, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), (3, 3), axis=(1, 2))
    exact = np.einsum("chwij,ocij->ohw", windows, weight * np.float64(STEP))[None]
    pairs = (computed(quantized, entry, x), x), (computed(product, entry, x), exact)
    return [float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)) for found, wanted in pairs]


for levels, least in ((16, 0.05), (256, 0.002)):
    (alone, behind), (_, whole) = errors(levels, 7.5), errors(levels, 7)
    told = f"7.5 alone {alone:.4f}, behind the convolution {behind:.4f}; 7 behind the convolution {whole:.4f}"
    print(f"{levels} levels: {told}")
    assert alone < 1e-5 and whole < 1e-5 and behind > least, "behaves otherwise now"
PYTHON
venv/bin/python check.py
