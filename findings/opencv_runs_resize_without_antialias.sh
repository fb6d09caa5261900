#!/usr/bin/env bash
# OpenCV 5.0.0 (opencv-python-headless 5.0.0.93), cv2.dnn with its new engine, which it takes by itself: Resize with
# antialias=1 of an ONNX file is run without antialiasing, and nothing is told. torch writes such nodes for
# interpolate(..., antialias=True), the reduction that training pairs, colour fixes and residual branches of
# super-resolution are made with: the picture keeps its shape and is full of aliasing. The classic engine
# refuses the file, and onnxruntime computes what torch does.
# Remedy: compare an exported model's picture with torch's; write the reduction as a strided convolution.
#
# Seen (bicubic reduction by 4 of noise in [0, 1], largest difference to torch):
#   onnxruntime 6e-08; OpenCV 0.5, and 0 to the same cubic (a = -0.5) without antialiasing
#   ENGINE_CLASSIC: cv2.error, parse error of the node
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 \
    opencv-python-headless==5.0.0.93
cat >check.py <<'PYTHON'
import cv2
import numpy as np
import onnxruntime
import torch


class Quarter(torch.nn.Module):
    def forward(self, image):
        return torch.nn.functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)


def plain_quarter(image):
    """The middle of 4 pixels each way by the cubic with a = -0.5, without antialiasing."""
    taps = torch.tensor([-1.0, 9.0, 9.0, -1.0]) / 16
    rows = image.unfold(2, 4, 4) @ taps
    return rows.unfold(3, 4, 4) @ taps


torch.manual_seed(0)
image = torch.rand(1, 3, 32, 48)
torch.onnx.export(Quarter(), (image,), "quarter.onnx", dynamo=True, opset_version=18, verbose=False)
wanted = Quarter()(image).numpy()

session = onnxruntime.InferenceSession("quarter.onnx")
found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
print(f"onnxruntime: {np.abs(found - wanted).max():.1g}")
assert np.abs(found - wanted).max() < 1e-5

network = cv2.dnn.readNetFromONNX("quarter.onnx")
network.setInput(image.numpy())
found = network.forward()
off, off_plain = (np.abs(found - other).max() for other in (wanted, plain_quarter(image).numpy()))
print(f"OpenCV: {off:.1g}, to no antialiasing {off_plain:.1g}")
assert found.shape == wanted.shape and off > 0.2 and off_plain < 1e-5
try:
    cv2.dnn.readNetFromONNX("quarter.onnx", cv2.dnn.ENGINE_CLASSIC)
except cv2.error as error:
    print("ENGINE_CLASSIC:", "parse error" if "parse error" in str(error) else error)
else:
    raise AssertionError("the classic engine takes it now")
PYTHON
venv/bin/python -W ignore check.py 2>/dev/null
