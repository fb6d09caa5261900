#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.15.0): SSIM with the usual Gaussian window of 11 pixels is not the number of MATLAB,
# BasicSR, pyiqa and scikit-image, which average over the places where the window lies inside of the picture. It mirrors
# the pictures at their borders and averages over every pixel, those whose windows see mirrored ones included. In tables
# with four digits this shows even at 512 pixels; in crops of 32 to 64, by which networks are often validated, 53 to
# 29 % of the places are such. kernel_size changes nothing: sigma alone decides this window (in MS-SSIM, too, where it is
# documented as the size of the Gaussian kernel).
# Remedy: return_full_image=True, and the mean of [..., 5:-5, 5:-5] of what it gives.
#
# Seen (skimage.data.astronaut in grey with normal noise of 12 levels, cut into squares; torchmetrics minus scikit-image
# with Gaussian weights and population covariance, mean and largest magnitude; kernel_size 7, 11 and 33 alike):
#   squares of 32 pixels 0.033, 0.179; of 64 pixels 0.017, 0.072; the whole picture of 512 pixels 0.005
#   the mean without 5 pixels at each border: at most 0.00005 in all of them
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 scikit-image==0.26.0 torchmetrics==1.9.0
cat >check.py <<'PYTHON'
import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.data import astronaut
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

image = rgb2gray(astronaut())
noisy = np.clip(image + np.random.default_rng(0).normal(0, 12 / 255, image.shape), 0, 1)


def ssim(x, y, **options):
    x, y = (torch.from_numpy(part.copy()).float()[None, None] for part in (x, y))
    return structural_similarity_index_measure(y, x, data_range=1.0, **options)


weights = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
for side, expected in ((32, (0.033, 0.179)), (64, (0.017, 0.072)), (512, (0.005, 0.005))):
    apart, inside = [], []
    for place in np.ndindex(512 // side, 512 // side):
        window = tuple(slice(side * first, side * first + side) for first in place)
        x, y = image[window], noisy[window]
        usual = structural_similarity(x, y, data_range=1.0, **weights)
        sizes = {float(ssim(x, y, kernel_size=size)) for size in (7, 11, 33)}
        assert len(sizes) == 1, "kernel_size is used now"
        apart.append(abs(sizes.pop() - usual))
        inside.append(abs(float(ssim(x, y, return_full_image=True)[1][..., 5:-5, 5:-5].mean()) - usual))
    found = round(np.mean(apart), 3), round(max(apart), 3)
    print(f"squares of {side} pixels: mean and largest {found}, without 5 pixels at each border {max(inside):.6f}")
    assert np.allclose(found, expected, atol=0.001), "the margin behaves otherwise now"
    assert max(inside) < 1e-4, "inside of the margin they differ now"
PYTHON
venv/bin/python -W ignore check.py
