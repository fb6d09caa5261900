#!/usr/bin/env bash
# OpenCV 5.0.0 (opencv-python-headless 5.0.0.93), cv2.dnn, both engines: where a convolution or pooling with auto_pad
# needs an odd number of lines around the image, the surplus one goes on the wrong side. ONNX (and TensorFlow, whose
# networks are written this way) puts it behind the image for SAME_UPPER, in front for SAME_LOWER. OpenCV has (kernel -
# 1) // 2 lines in front under either name: in every 3x3 layer that halves an even image, the most usual place,
# SAME_UPPER is computed on the picture moved by one pixel, and with kernels of 2 or 4 at stride 1 SAME_LOWER is.
# Shapes are right and nothing is told; onnxruntime computes what the standard says, and with the same padding written
# as numbers (pads) OpenCV does, too.
# Remedy: write auto_pad as pads before OpenCV reads a file, and compare one picture with onnxruntime's.
#
# Seen (image 8x8, largest difference to onnxruntime; "other side": to the same layer with the surplus there):
#   Conv 3x3, stride 2, SAME_UPPER       wrong, other side 0
#   Conv 3x3, stride 2, the same as pads right
#   Conv 3x3, stride 1, SAME_UPPER       right (nothing is left over)
#   Conv 2x2, stride 1, SAME_LOWER       wrong, other side 0
#   MaxPool 3x3, stride 2, SAME_UPPER    wrong, other side 0
#   the same three with ENGINE_CLASSIC   as above
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 opencv-python-headless==5.0.0.93
cat >check.py <<'PYTHON'
import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
IMAGE = random.random((1, 3, 8, 8)).astype("float32")


def model(kind, kernel, stride, **padding):
    """One layer of that kind, kernel and stride, as the bytes of an ONNX file."""
    weights = np.random.default_rng(1).random((2, 3, kernel, kernel)).astype("float32")
    convolves = kind == "Conv"
    inputs, constants = (["x", "w"], [numpy_helper.from_array(weights, "w")]) if convolves else (["x"], [])
    node = helper.make_node(kind, inputs, ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, **padding)
    channels, side = (2 if convolves else 3), 8 // stride
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", IMAGE.shape), ("y", (1, channels, side, side)))
    ]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def wanted(*layer, **padding):
    return onnxruntime.InferenceSession(model(*layer, **padding)).run(None, {"x": IMAGE})[0]


def opencv(engine, *layer, **padding):
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model(*layer, **padding), np.uint8), engine)
    network.setInput(IMAGE)
    return network.forward()


def off(found, other):
    assert found.shape == other.shape
    return float(np.abs(found - other).max())


BEHIND, IN_FRONT = [0, 0, 1, 1], [1, 1, 0, 0]
ODD = [
    (("Conv", 3, 2), "SAME_UPPER", BEHIND, IN_FRONT),
    (("Conv", 2, 1), "SAME_LOWER", IN_FRONT, BEHIND),
    (("MaxPool", 3, 2), "SAME_UPPER", BEHIND, IN_FRONT),
]
for engine in (cv2.dnn.ENGINE_NEW, cv2.dnn.ENGINE_CLASSIC):
    for layer, name, right, wrong in ODD:
        standard = wanted(*layer, auto_pad=name)
        assert off(wanted(*layer, pads=right), standard) < 1e-5, "what the standard says"
        found = opencv(engine, *layer, auto_pad=name)
        to_standard, to_other = off(found, standard), off(found, wanted(*layer, pads=wrong))
        written = off(opencv(engine, *layer, pads=right), standard)
        print(engine, *layer, name, f"{to_standard:.2f}, other side {to_other:.2g}, as pads {written:.2g}")
        assert to_standard > 0.1 and to_other < 1e-5 and written < 1e-5
    even = off(opencv(engine, "Conv", 3, 1, auto_pad="SAME_UPPER"), wanted("Conv", 3, 1, auto_pad="SAME_UPPER"))
    print(engine, f"Conv 3 1 SAME_UPPER {even:.2g}")
    assert even < 1e-5
PYTHON
venv/bin/python -W ignore check.py 2>/dev/null
