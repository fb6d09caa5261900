#!/usr/bin/env bash
# lpips 0.1.4 (torch 2.15.0, torchvision 0.29.2): LPIPS is random as soon as the module that holds it as its loss is put
# into training mode. Its constructor calls eval(), so that on its own it is deterministic; but in front of each of its
# 1x1 layers stands a dropout of one half, from when its own weights were fitted, and train() of an enclosing module
# reaches it. The same two images then score differently at each call; no warning, and the mean is about right, so that
# a loss curve looks plausible. Remedies: eval() on it after each train(), or keep it outside of what is trained.
#
# Seen (one pair of images, random features, so that nothing is downloaded; ten calls each):
#   on its own: 1 value; after train() of the module that holds it: 10 values, the outermost 7% apart
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 lpips==0.1.4
cat >check.py <<'PYTHON'
import warnings

import torch

warnings.filterwarnings("ignore")
import lpips  # noqa: E402

torch.manual_seed(0)
distance = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
first, second = torch.rand(2, 1, 3, 64, 64) * 2 - 1


@torch.no_grad()
def ten_calls():
    return [float(distance(first, second)) for _ in range(10)]


alone = ten_calls()
torch.nn.ModuleDict({"network": torch.nn.Conv2d(3, 3, 1), "loss": distance}).train()
held = ten_calls()
spread = (max(held) - min(held)) / (sum(held) / 10)
print(f"on its own: {len(set(alone))} value;", end=" ")
print(f"after train() of the module that holds it: {len(set(held))} values, the outermost {spread:.0%} apart")
assert len(set(alone)) == 1 and len(set(held)) > 5 and spread > 0.01, "otherwise now"
PYTHON
venv/bin/python check.py
