#!/usr/bin/env bash
# gguf 0.19.0 (numpy 2.4.6), the format of stable-diffusion.cpp and of diffusers' GGUF models: Q4_0 and Q5_0 store one
# scale and no minimum per 32 weights, so they look symmetric, but each scale has the sign that makes the block's largest
# magnitude the code -8 (-16), and there is no +8 (+16). So that value is kept, and the same value of the other sign loses
# an eighth (a sixteenth); of two equal ones the first in the block wins. Over many weights it is better than a scale by
# the largest code (0.0074 of a Gaussian's power against 0.0094), but filters whose weights cancel (an edge, a difference
# of two channels) no longer do, which a layer's mean error does not show. Q8_0 has codes of -127 to 127 and is symmetric.
#
# Seen (32 weights from -1 to 1): Q4_0 keeps -1 and makes 0.875 of 1; turned round, it keeps 1 and makes -0.875 of -1;
#   Q5_0 0.938, Q8_0 1.000. A filter of +1 and -1 in turn, whose sum is 0: 2.0 after Q4_0, 1.0 after Q5_0, 0.0 after Q8_0
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet gguf==0.19.0 numpy==2.4.6
cat >check.py <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import dequantize, quantize


def stored(weights, kind):
    return dequantize(quantize(weights, kind), kind)


ramp = np.linspace(-1, 1, 32, dtype=np.float32)[None]
pairs = np.tile(np.float32([1, -1]), 16)[None]
for kind, cut in ((Kind.Q4_0, 0.875), (Kind.Q5_0, 0.9375), (Kind.Q8_0, 1.0)):
    ends, turned, total = stored(ramp, kind)[0, [0, -1]], stored(-ramp, kind)[0, [0, -1]], stored(pairs, kind).sum()
    print(f"{kind.name}: -1, 1 -> {ends}; 1, -1 -> {turned}; sum of a balanced filter {total:.3f}")
    assert np.allclose(ends, [-1, cut], atol=2e-3) and np.allclose(turned, [1, -cut], atol=2e-3), "gguf: otherwise now"
    assert np.isclose(total, 16 * (1 - cut), atol=0.05), "gguf behaves otherwise now"

gaussian = np.random.default_rng(0).standard_normal((4096, 32), dtype=np.float32)
scale = np.abs(gaussian).max(1, keepdims=True) / 7
plain = np.clip(np.round(gaussian / scale), -8, 7) * scale
kept = stored(gaussian, Kind.Q4_0), plain
errors = [np.square(made - gaussian).mean() / np.square(gaussian).mean() for made in kept]
print("error of a Gaussian: Q4_0 {:.4f}, scale by the largest code {:.4f}".format(*errors))
assert errors[0] < 0.85 * errors[1], "gguf behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
