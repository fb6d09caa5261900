#!/usr/bin/env bash
# pyiqa 0.1.16 (torch 2.15.0): create_metric("psnry") and create_metric("ssim") are not the PSNR-Y and SSIM-Y of
# super-resolution tables (MATLAB's rgb2ycbcr, BasicSR, OSEDiff). They take the luma of YIQ, which spans 0 to 255, where
# those take Y of YCbCr, which spans 16 to 235: every PSNR is 20 log10(255 / 219) = 1.32 dB lower, and SSIM, whose
# constants stay those of 255, falls, here by 0.09. create_metric("psnr") beside them is over RGB, "ssim" over luma.
# Remedy: color_space="ycbcr", for ssim and ms_ssim too.
#
# Seen (skimage.data.astronaut, normal noise of 12 grey levels, rounded to 8 bits; by the formula of Y and by
# scikit-image's SSIM with Gaussian weights on Y):
#   PSNR: psnr 27.02, psnry 30.39, with ycbcr 31.71, by the formula 31.71
#   SSIM: ssim 0.690, with ycbcr 0.780, scikit-image on Y 0.781
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 scikit-image==0.26.0 pyiqa==0.1.16
cat >check.py <<'PYTHON'
import numpy as np
import pyiqa
import torch
from skimage.data import astronaut
from skimage.metrics import structural_similarity

image = astronaut()
noise = np.random.default_rng(0).normal(0, 12, image.shape)
noisy = np.clip(image + noise, 0, 255).round().astype(np.uint8)
tensors = [torch.from_numpy(each.copy()).movedim(-1, 0)[None] / 255 for each in (noisy, image)]


def pyiqas(name, **options):
    return float(pyiqa.create_metric(name, device="cpu", **options)(*tensors))


def luma(rgb):
    """Y of YCbCr, 16 to 235 (ITU-R BT.601)."""
    return 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255


x, y = luma(noisy), luma(image)
psnr = 10 * np.log10(255**2 / np.mean((x - y) ** 2))
weights = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
ssim = structural_similarity(x, y, data_range=255, **weights)
found = {name: (pyiqas(name), pyiqas(name, color_space="ycbcr")) for name in ("psnry", "ssim")}
print(f"PSNR: psnr {pyiqas('psnr'):.2f}, psnry and with ycbcr", found["psnry"], f"by the formula {psnr:.2f}")
print("SSIM: ssim and with ycbcr", found["ssim"], f"scikit-image on Y {ssim:.3f}")
assert abs(found["psnry"][1] - psnr) < 0.01 and abs(found["ssim"][1] - ssim) < 0.002, "ycbcr behaves otherwise now"
assert 1.3 < psnr - found["psnry"][0] < 1.35 and ssim - found["ssim"][0] > 0.05, "psnry and ssim behave otherwise now"
PYTHON
venv/bin/python -W ignore check.py
