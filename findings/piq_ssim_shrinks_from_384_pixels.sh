#!/usr/bin/env bash
# piq 0.8.0 (torch 2.15.0): piq.ssim compares images as they are up to 383 pixels on the shorter side, where it agrees
# with scikit-image; from 384 pixels on it first averages both over blocks of round(side / 256) pixels, by default and
# without a word (downsample=True). Noise and the fine structure that super-resolution is about are averaged away: the
# same photograph with the same noise goes from 0.59 to 0.85 by one more row and column, and crops of 320 pixels
# cannot be compared with whole photographs. Remedy: downsample=False.
#
# Seen (skimage.data.astronaut, normal noise of 12 grey levels, squares from the top left; scikit-image with gaussian
# weights and population covariance):
#   383 pixels: piq 0.5853, downsample=False 0.5853, scikit-image 0.5853
#   384 pixels: piq 0.8537, downsample=False 0.5855, scikit-image 0.5855
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 scikit-image==0.26.0 piq==0.8.0
cat >check.py <<'PYTHON'
import numpy as np
import piq
import torch
from skimage.data import astronaut
from skimage.metrics import structural_similarity

image = astronaut()
noise = np.random.default_rng(0).normal(0, 12, image.shape)
noisy = np.clip(image + noise, 0, 255).round().astype(np.uint8)


def tensor(picture):
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


seen = {}
for side in (383, 384):
    a, b = image[:side, :side], noisy[:side, :side]
    default = piq.ssim(tensor(b), tensor(a), data_range=1.0)
    whole = piq.ssim(tensor(b), tensor(a), data_range=1.0, downsample=False)
    options = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    other = structural_similarity(a / 255, b / 255, data_range=1.0, **options)
    seen[side] = [round(float(value), 4) for value in (default, whole, other)]
    print("{}: piq {}, downsample=False {}, scikit-image {}".format(side, *seen[side]))
below, above = np.array(seen[383]), np.array(seen[384])
assert np.ptp(below) < 2e-4, "piq and scikit-image differ below 384 pixels now"
assert abs(above[1] - above[2]) < 2e-4 and above[0] - above[1] > 0.25, "piq behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
