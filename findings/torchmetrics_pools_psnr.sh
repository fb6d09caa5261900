#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.15.0): PeakSignalNoiseRatio over a data set is no mean of the images' PSNR, which is what
# super-resolution tables report. It sums squared errors over all images and takes one logarithm, so the worst images
# decide: two images of 40 and 20 dB give 22.97 dB, not 30, however they are batched; reduction="elementwise_mean", the
# default, does nothing about it. StructuralSimilarityIndexMeasure beside it does average over images. But where it is
# not given data_range it takes the span of the whole batch, so an image's value hangs on its neighbours in the batch.
# Remedies: PSNR with dim=(1, 2, 3), which then averages over images; data_range=1 for SSIM.
#
# Seen (64x64 pixels of three channels):
#   PSNR of each image: 40.00, 20.00 dB; of both: 22.97 dB; with dim=(1, 2, 3): 30.00 dB
#   SSIM of one flat pair: 0.9439 with data_range=1, 0.9412 without; without, beside a pair of full range: 0.9439
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 torchmetrics==1.9.0
cat >check.py <<'PYTHON'
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchmetrics.image import PeakSignalNoiseRatio

draw = torch.Generator().manual_seed(0)
images = torch.rand(2, 3, 64, 64, generator=draw) * 0.8 + 0.1
signs = torch.randint(2, images.shape, generator=draw) * 2 - 1
restored = images + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1) * signs


def psnr(batches, **options):
    metric = PeakSignalNoiseRatio(data_range=1.0, **options)
    for batch in batches:
        metric.update(restored[batch], images[batch])
    return f"{float(metric.compute()):.2f}"


first, second, both = slice(0, 1), slice(1, 2), slice(0, 2)
singles, pooled = [psnr([first]), psnr([second])], {psnr([both]), psnr([first, second])}
averaged = {psnr([both], dim=(1, 2, 3)), psnr([first, second], dim=(1, 2, 3))}
print("PSNR of each image:", singles, "of both:", pooled, "with dim:", averaged)

flat = torch.rand(1, 3, 64, 64, generator=draw) * 0.3 + 0.3
noisy = flat + torch.randn(flat.shape, generator=draw) * 0.03
full = torch.cat((torch.zeros(1, 3, 64, 32), torch.ones(1, 3, 64, 32)), -1)
given = float(ssim(noisy, flat, data_range=1.0))
alone = float(ssim(noisy, flat))
beside = float(ssim(torch.cat((noisy, full)), torch.cat((flat, full)), reduction=None)[0])
print(f"SSIM of one flat pair: {given:.4f} with data_range=1, {alone:.4f} without; beside a full range {beside:.4f}")
assert (singles, pooled, averaged) == (["40.00", "20.00"], {"22.97"}, {"30.00"}), "PSNR behaves otherwise now"
assert abs(beside - given) < 5e-4 < given - alone, "SSIM behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
