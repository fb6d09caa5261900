#!/usr/bin/env bash
# executorch 1.5.1 (torch 2.15.0), its own CPU kernels: division by a tensor of one element, or by a number, multiplies
# with the reciprocal, so that a third of the quotients are not those of IEEE division (and of torch) but a neighbour, one
# unit in the last place away. Division by a tensor of one divisor for each channel is exact. A quantizer's x / scale is
# such a division: now and then a value halfway between two codes gets the other one, and a low-bit network turns one code
# into another picture, while layers of the same graph with a scale for each channel agree with torch.
#
# Seen (524,288 normal numbers divided by 0.0371):
#   differ: by one element 33.0%, by the number 33.0%, by a divisor for each channel 0.0%; at most 1 unit in the last place;
#   all equal to x times the reciprocal: True
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 executorch==1.5.1
cat >check.py <<'PYTHON'
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

torch.manual_seed(0)
x, divisor = torch.randn(1, 8, 256, 256), 0.0371


class Divide(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by
        if isinstance(by, torch.Tensor):
            del self.by
            self.register_buffer("by", by)

    def forward(self, x):
        return x / self.by


def quotients(by):
    exported = torch.export.export(Divide(by), (x,))
    program = Runtime.get().load_program(to_edge_transform_and_lower(exported).to_executorch().buffer)
    return program.load_method("forward").execute([x])[0]


wanted = x / divisor
assert torch.equal(wanted, x / torch.tensor(divisor)), "torch divides otherwise"
one, number, channels = (quotients(by) for by in (torch.tensor(divisor), divisor, torch.full((1, 8, 1, 1), divisor)))
differ = [float((found != wanted).double().mean()) for found in (one, number, channels)]
units = int((one.view(torch.int32) - wanted.view(torch.int32)).abs().max())
same = torch.equal(one, x * (1 / torch.tensor(divisor))) and torch.equal(one, number)
names = ("by one element", "by the number", "by a divisor for each channel")
print("differ:", ", ".join(f"{name} {share:.1%}" for name, share in zip(names, differ)), end="; ")
print(f"at most {units} unit in the last place;\nall equal to x times the reciprocal: {same}")
assert differ[0] > 0.2 and differ[2] == 0 and units == 1 and same, "otherwise now"
PYTHON
venv/bin/python check.py 2>/dev/null
