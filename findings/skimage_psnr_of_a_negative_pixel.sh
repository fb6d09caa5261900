#!/usr/bin/env bash
# scikit-image 0.26.0 (numpy 2.4.6): peak_signal_noise_ratio of floating-point images, where no data_range is given, takes
# a range of 1 if the reference has no negative value and of 2 if it has one. So a single pixel of -0.000001 in the
# reference adds 6.02 dB to every score against it, without a warning; in the other image it adds nothing. Networks,
# bicubic enlargement and colour conversions overshoot by that much, so a full-precision picture taken as the reference has
# such pixels, and a mean over images mixes both ranges. A value above 1 is refused. structural_similarity
# refuses to guess for floating-point images. Remedy: data_range=1 (or clip first).
#
# Seen (64x64 pixels, noise of 0.02; one pixel of the reference 0.000001, then -0.000001):
#   range not given: 33.09 dB, then 39.11 dB (+6.02); data_range=1: 33.09 dB, 33.09 dB
#   the same pixel in the other image: 33.05 dB, 33.05 dB
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 scikit-image==0.26.0
cat >check.py <<'PYTHON'
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

rng = np.random.default_rng(0)
reference = rng.random((64, 64)).astype(np.float32)
noisy = (reference + rng.normal(0, 0.02, reference.shape)).clip(0, 1).astype(np.float32)


def with_pixel(image, value):
    changed = image.copy()
    changed[0, 0] = value
    return changed


pair = with_pixel(reference, 1e-6), with_pixel(reference, -1e-6)
guessed = [peak_signal_noise_ratio(image, noisy) for image in pair]
told = [peak_signal_noise_ratio(image, noisy, data_range=1) for image in pair]
other = [peak_signal_noise_ratio(reference, with_pixel(noisy, value)) for value in (1e-6, -1e-6)]
gain = guessed[1] - guessed[0]
print("range not given: {:.2f} dB, then {:.2f} dB ({:+.2f});".format(*guessed, gain), end=" ")
print("data_range=1: {:.2f} dB, {:.2f} dB".format(*told))
print("the same pixel in the other image: {:.2f} dB, {:.2f} dB".format(*other))
try:
    structural_similarity(pair[1], noisy)
    refuses = False
except ValueError:
    refuses = True
assert abs(gain - 20 * np.log10(2)) < 0.01, "scikit-image guesses otherwise now"
assert abs(told[1] - told[0]) < 0.01 and abs(other[1] - other[0]) < 0.01 and refuses, "otherwise now"
PYTHON
venv/bin/python check.py
