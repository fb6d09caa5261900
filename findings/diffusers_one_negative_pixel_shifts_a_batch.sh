#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.15.0): VaeImageProcessor.preprocess, the way of images into its image-to-image and upscaling
# pipelines, maps tensors and arrays of [0, 1] to [-1, 1]. One value below 0 anywhere in the batch, and it takes all of
# it for images of [-1, 1] already and maps nothing. What bicubic upscaling gives beside an edge is such a value: it
# overshoots by a few percent. A photograph enlarged in float then goes into the VAE at half its contrast and too bright
# (mid-grey as three quarters), and so do all others of its batch. A value above 1 changes nothing. All that is told is
# a FutureWarning, of a "deprecated" range that nobody meant to pass.
# Remedy: clamp to [0, 1] first, or VaeImageProcessor(do_normalize=False) and 2 * x - 1 of one's own.
#
# Seen (mean of mid-grey, 0.5 in [0, 1], after preprocess; 0 is right):
#   as it is                                       0.000
#   one value of 256 * 3 is -0.001                 0.499, and a FutureWarning
#   one value is 1.001                             0.001
#   another image of the batch has that -0.001     0.500, and a FutureWarning
# and a step from 0.02 to 0.9 after bicubic x4 has values down to -0.077, and goes through as it is.
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 pillow==13.0.0 diffusers==0.42.1 transformers==5.23.0
cat >check.py <<'PYTHON'
import warnings

import torch
from diffusers.image_processor import VaeImageProcessor

process = VaeImageProcessor().preprocess
grey = torch.full((1, 3, 16, 16), 0.5)


def spoiled(value):
    image = grey.clone()
    image[0, 0, 0, 0] = value
    return image


def mean(images):
    """Of the first image after preprocess, and the categories of warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return round(float(process(images)[0].mean()), 3), [warning.category for warning in told]


below = spoiled(-0.001)
print(mean(grey), mean(below), mean(spoiled(1.001)), mean(torch.cat([grey, below])))
assert mean(grey) == (0.0, [])
assert mean(below) == (0.499, [FutureWarning])
assert mean(below[0].permute(1, 2, 0).numpy()) == (0.499, [FutureWarning])
assert mean(spoiled(1.001)) == (0.001, [])
assert mean(torch.cat([grey, below])) == (0.5, [FutureWarning])

# A photograph's edge, enlarged as super-resolution pipelines do it.
step = torch.full((1, 3, 16, 16), 0.02)
step[..., 8:] = 0.9
large = torch.nn.functional.interpolate(step, scale_factor=4, mode="bicubic")
lowest = float(large.min())
print(f"bicubic: least value {lowest:.3f}, after preprocess {float(process(large).min()):.3f}")
assert lowest < 0
assert torch.equal(process(large), large)
assert torch.equal(process(large.clamp(0, 1)), 2 * large.clamp(0, 1) - 1)
PYTHON
venv/bin/python -W ignore check.py
