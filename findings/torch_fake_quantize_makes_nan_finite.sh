#!/usr/bin/env bash
# torch 2.15.0 (CPU): fake quantization, in torch.ao.quantization and by itself, turns NaN into a number, the lowest
# level of the range. A network that has diverged, or whose weights hold a NaN, goes on with finite images and losses,
# and no check behind it (isfinite of loss or picture) finds it. Infinity becomes the highest level per tensor, as one
# would guess, but per channel, as weights are quantized, the LOWEST. torch.quantize_per_tensor, which all this is to
# simulate, makes NaN the HIGHEST level. clamp and round keep NaN, as IEEE 754 has it.
# Remedy: look for NaN and infinity before a quantizer, not behind it.
#
# Seen (scale 0.1, levels -8 to 7, so -0.8 to 0.7):
#                                NaN   inf  -inf   5.0
#   per tensor                  -0.8   0.7  -0.8   0.7
#   per channel                 -0.8  -0.8  -0.8   0.7
#   quantize_per_tensor (int8)  12.7  12.7 -12.8   5.0
#   (x / 0.1).round().clamp()    nan   0.7  -0.8   0.7
#   FakeQuantize around a convolution's weights with one NaN: the output is finite, the weight's gradient as well
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6
cat >check.py <<'PYTHON'
import torch
from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver

values = torch.tensor([float("nan"), float("inf"), -float("inf"), 5.0])
one, zero = torch.tensor([0.1]), torch.tensor([0], dtype=torch.int32)
rows = {
    "per tensor": torch.fake_quantize_per_tensor_affine(values, 0.1, 0, -8, 7),
    "per channel": torch.fake_quantize_per_channel_affine(values[None], one, zero, 0, -8, 7)[0],
    "quantize_per_tensor": torch.quantize_per_tensor(values, 0.1, 0, torch.qint8).dequantize(),
    "round and clamp": (values / 0.1).round().clamp(-8, 7) * 0.1,
}
seen = {name: [round(value, 4) for value in row.tolist()] for name, row in rows.items()}
for name, row in seen.items():
    print(f"{name:20}", *(f"{value:6.1f}" for value in row))
assert seen["per tensor"] == [-0.8, 0.7, -0.8, 0.7]
assert seen["per channel"] == [-0.8, -0.8, -0.8, 0.7]
assert seen["quantize_per_tensor"] == [12.7, 12.7, -12.8, 5.0]
assert rows["round and clamp"][0].isnan() and seen["round and clamp"][1:] == [0.7, -0.8, 0.7]

torch.manual_seed(0)
layer = torch.nn.Conv2d(3, 8, 3)
weights = FakeQuantize(
    PerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)
weights(layer.weight)  # ranges of the sound weights
weights.disable_observer()
with torch.no_grad():
    layer.weight[0, 0, 0, 0] = float("nan")
output = torch.nn.functional.conv2d(torch.rand(1, 3, 16, 16), weights(layer.weight), layer.bias)
output.square().mean().backward()
finite = output.isfinite().all().item(), layer.weight.grad.isfinite().all().item()
print("a convolution with one NaN among its weights: finite output and gradient", *finite)
assert finite == (True, True)
PYTHON
venv/bin/python -W ignore check.py
