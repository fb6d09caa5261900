#!/usr/bin/env bash
# peft 0.21.2 (torch 2.15.0), diffusers' and OSEDiff's way to low-rank updates: the update of a Conv2d always sees zeros
# around the image. padding_mode is not passed on, so on a layer that reflects, replicates or wraps around (image
# restoration uses reflection against dark rims) the adapter is trained with one picture at the border and merged into
# another: merge() or merge_and_unload() adds B A to the layer's weight, which then sees reflected pixels. Inside the
# two agree to rounding, at the border they do not, and nothing is told. (With a dilation it raises, which is honest.)
# Remedy: reflect by a layer of its own before a convolution with padding=0, or set lora_A's padding_mode as below.
#
# Seen (3 to 8 channels, 3x3, 12 x 12 pixels, rank 4; largest difference between adapter and merged layer, of an update
# whose largest effect is 3.46):
#   zeros      border 7e-07, inside 7e-07        reflect    border 1.99, inside 7e-07
#   replicate  border 1.64,  inside 7e-07        circular   border 1.62, inside 7e-07
#   reflect, with lora_A's padding_mode set      border 7e-07
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2
cat >check.py <<'PYTHON'
import torch
from peft import LoraConfig, inject_adapter_in_model

ADAPTED = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)  # an update that does something


@torch.no_grad()
def merged_minus_adapted(mode, mended=False):
    """Largest difference at the border and inside, and the largest effect of the update."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode))
    image = torch.randn(1, 3, 12, 12)
    before = network(image)
    layer = inject_adapter_in_model(ADAPTED, network)[0]
    if mended:
        first = layer.lora_A["default"]
        first.padding_mode, first._reversed_padding_repeated_twice = mode, [1, 1, 1, 1]
    adapted = network(image)
    layer.merge()
    difference = (network(image) - adapted).abs()
    inside = difference[..., 1:-1, 1:-1].max().item()
    return difference.max().item(), inside, (adapted - before).abs().max().item()


for mode in ("zeros", "reflect", "replicate", "circular"):
    border, inside, effect = merged_minus_adapted(mode)
    print(f"{mode:9}  border {border:.3g}, inside {inside:.1g}, effect {effect:.2f}")
    assert inside < 1e-5
    assert border < 1e-5 if mode == "zeros" else border > 0.3 * effect
border, *_ = merged_minus_adapted("reflect", mended=True)
print(f"reflect, lora_A reflects as well: border {border:.1g}")
assert border < 1e-5
PYTHON
venv/bin/python -W ignore check.py
