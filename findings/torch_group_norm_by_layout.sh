#!/usr/bin/env bash
# torch 2.15.0 (CPU): group_norm of an image in the layout channels_last loses the digits that the mean takes, twice over:
# it seems to subtract the squared mean from the mean square in float32, where the default layout computes the deviations
# first. Where a group's mean is 100 times its deviation the result is off by 0.6 %, a thousand times more than in the
# default layout; from 1000 times on the variance that is left is none, and the result 100 times too large, without a
# word. batch_norm (training) loses less, instance_norm nothing. A network that was moved to channels_last for speed, as
# VAE and UNet are, gives another picture where its activations have large means or an image is nearly flat.
# Remedy: x.contiguous() in front of the normalization where means may be large.
#
# Seen (2 images, 32 channels, 64 x 64, 8 groups, deviation 1; relative error of the default layout and of channels_last,
# against float64; much the same with 1 and 2 threads and with ATEN_CPU_CAPABILITY=default):
#   mean 0: 5.6e-08, 2.1e-07; 10: 3.6e-07, 5.8e-05; 100: 4.4e-06, 5.9e-03; 1000: 2.7e-05, 1.1e+02
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6
cat >check.py <<'PYTHON'
import torch
from torch.nn.functional import group_norm

torch.manual_seed(0)
noise, errors = torch.randn(2, 32, 64, 64), {}
for mean in 0, 10, 100, 1000:
    image = noise + mean
    expected = group_norm(image.double(), 8)
    for layout in torch.contiguous_format, torch.channels_last:
        found = group_norm(image.contiguous(memory_format=layout), 8).double()
        errors[mean, layout] = float((found - expected).norm() / expected.norm())
    print(f"mean {mean}: {errors[mean, torch.contiguous_format]:.1e}, {errors[mean, torch.channels_last]:.1e}")
for mean in 0, 10, 100, 1000:
    assert errors[mean, torch.contiguous_format] < 1e-4, "the default layout loses digits, too, now"
assert errors[0, torch.channels_last] < 1e-6, "channels_last is inexact without a mean now"
assert 1e-3 < errors[100, torch.channels_last] < 0.1, "100 deviations are another loss now"
assert errors[1000, torch.channels_last] > 10, "1000 deviations leave a variance now"
PYTHON
venv/bin/python -W ignore check.py
