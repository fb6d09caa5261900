#!/usr/bin/env bash
# ncnn 1.0.20261020 (the Python package; numpy 2.4.6): ncnn.Mat(array) neither copies a numpy array nor holds on to it. Numbers
# that are written into the array afterwards are the network's input, and the array's reference count does not rise, so that
# an array which nothing else names (the result of an expression, inside the call) is given back while the Mat still points
# to it. ncnn's C++ Mat counts its references, and torch.from_numpy, which shares memory too, keeps its array alive. A loop
# that fills one buffer with tile after tile thus computes all of them on the last one's pixels where it runs the networks
# afterwards. Mat.clone() of a Mat whose array is still named is a copy, and so is np.array() of one.
#
# Seen:
#   references to the array before and after ncnn.Mat(array): 2 2
#   the Mat after 7 was written into the array: [7.0, 7.0, 7.0]; a clone that was taken before: [1.0, 1.0, 1.0]
#   three tiles through one buffer, sums of what the network would see: [9.0, 9.0, 9.0]; with a clone each: [3.0, 6.0, 9.0]
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --no-deps ncnn==1.0.20261020 numpy==2.4.6 tqdm==4.70.1 requests==2.34.2 portalocker==3.2.0
cat >check.py <<'PYTHON'
import sys

import ncnn
import numpy as np

array = np.ones((1, 1, 3), np.float32)
before = sys.getrefcount(array)
mat = ncnn.Mat(array)
after = sys.getrefcount(array)
print("references to the array before and after ncnn.Mat(array):", before, after)
clone = mat.clone()
array[:] = 7
shared, kept = np.array(mat).ravel().tolist(), np.array(clone).ravel().tolist()
print(f"the Mat after 7 was written into the array: {shared}; a clone that was taken before: {kept}")
buffer, mats, clones = np.empty((1, 1, 3), np.float32), [], []
for tile in (1, 2, 3):
    buffer[:] = tile
    mats.append(ncnn.Mat(buffer))
    clones.append(mats[-1].clone())
sums = [[float(np.array(one).sum()) for one in several] for several in (mats, clones)]
print(f"three tiles through one buffer, sums of what the network would see: {sums[0]}; with a clone each: {sums[1]}")
expected = before == after and shared == [7.0] * 3 and kept == [1.0] * 3 and sums == [[9.0] * 3, [3.0, 6.0, 9.0]]
sys.exit(not expected)
PYTHON
venv/bin/python check.py
