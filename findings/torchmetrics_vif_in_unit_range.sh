#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.15.0): VisualInformationFidelity has the noise of the eye (variance 2) on the scale of 0
# to 255 and, unlike PSNR and SSIM beside it, no data_range; its documentation names no scale, its example is randn.
# Of images in [0, 1] nothing but what is blurred away still counts: a noisy picture gets 0.995, nearly a perfect mark,
# where VIF is 0.44. Means over a set of images so made stand beside no published number.
# Multiplied by 255 it is piq's vif_p, whose data_range says what the input is. Remedy: images times 255, or sigma_n_sq
# divided by 255^2.
#
# Seen (a grey chirp of 128 pixels with grain; torchmetrics in [0, 1], torchmetrics times 255, piq with data_range=1):
#   noise of 13 grey levels  0.9953 0.4371 0.4371    mean of 3x3 pixels  0.3582 0.2814 0.2814
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 torchmetrics==1.9.0 piq==0.8.0
cat >check.py <<'PYTHON'
import torch
from piq import vif_p
from torch.nn.functional import avg_pool2d
from torchmetrics.image import VisualInformationFidelity

noise = torch.Generator().manual_seed(0)


def eight_bits(image):
    return (image.clamp(0, 1) * 255).round() / 255


def grain(size):
    return size * torch.randn(1, 1, 128, 128, generator=noise)


t = torch.linspace(0, 1, 128)
clean = eight_bits(0.5 + 0.25 * torch.sin(40 * t**2) * torch.cos(25 * t)[:, None] + grain(0.1))
marks = {}
for name, image in {
    "noise": eight_bits(clean + grain(0.05)),
    "blur": eight_bits(avg_pool2d(clean, 3, 1, padding=1, count_include_pad=False)),
}.items():
    unit = VisualInformationFidelity()(image, clean).item()
    levels = VisualInformationFidelity()(255 * image, 255 * clean).item()
    scaled = VisualInformationFidelity(sigma_n_sq=2 / 255**2)(image, clean).item()
    other = vif_p(image, clean, data_range=1.0).item()
    print(f"{name}: {unit:.4f} {levels:.4f} {other:.4f}")
    assert abs(levels - other) < 1e-3 and abs(scaled - levels) < 0.01
    marks[name] = unit, levels
assert marks["noise"][0] > 0.95 and marks["noise"][1] < 0.6
assert marks["noise"][0] - marks["blur"][0] > 3 * (marks["noise"][1] - marks["blur"][1])
PYTHON
venv/bin/python -W ignore check.py
