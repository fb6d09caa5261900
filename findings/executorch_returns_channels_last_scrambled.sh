#!/usr/bin/env bash
# executorch 1.5.1 (torch 2.15.0), its own CPU kernels: where an image in the layout channels_last is added to, reduced by,
# multiplied with or divided by a number for each channel, (1, C, 1, 1), the result is scrambled, without an error: its
# numbers are right and lie in the default order, while the tensor says channels_last, so that each stands at another
# pixel's and channel's place. torch's export and the lowering accept the network, and the program runs. That is so once
# the whole network is moved by .to(memory_format=torch.channels_last), which is how convolution networks are set up for
# a CPU; where only the image has the layout, the program is refused while it runs ("tensors_have_same_dim_order").
# In the default layout all is exact. So compare an exported picture with torch's before you trust a program that ran,
# and move network and image to torch.contiguous_format before torch.export.
#
# Seen (image (1, 8, 16, 12) in [0, 1], numbers 1 to 8; largest difference to torch for mul, add, sub, div):
#   both default: 0, 0, 0, 0
#   both channels_last: 7.7, 7.8, 7.9, 0.99
#   both channels_last, read in the default order: 0, 0, 0, 0
#   the image alone: refused, refused, refused, refused
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
import operator

import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

torch.manual_seed(0)
picture = torch.rand(1, 8, 16, 12)


class PerChannel(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.register_buffer("gain", torch.arange(1.0, 9.0).view(1, 8, 1, 1))

    def forward(self, x):
        return self.operation(x, self.gain)


def difference(operation, of_network, of_image, reread=False):
    network, image = PerChannel(operation).to(memory_format=of_network), picture.contiguous(memory_format=of_image)
    exported = torch.export.export(network, (image,))
    program = Runtime.get().load_program(to_edge_transform_and_lower(exported).to_executorch().buffer)
    try:
        found = program.load_method("forward").execute([image])[0]
    except RuntimeError:
        return None
    if reread:
        found = found.permute(0, 2, 3, 1).reshape(found.shape)
    return float((found - network(image)).abs().max())


default, last = torch.contiguous_format, torch.channels_last
operations = [operator.mul, operator.add, operator.sub, operator.truediv]
layouts = {
    "both default": (default, default),
    "both channels_last": (last, last),
    "both channels_last, read in the default order": (last, last, True),
    "the image alone": (default, last),
}
found = {name: [difference(one, *layout) for one in operations] for name, layout in layouts.items()}
for name, values in found.items():
    print(f"{name}:", ", ".join("refused" if value is None else f"{value:.2g}" for value in values))
assert max(found["both default"]) < 1e-6 and min(found["both channels_last"]) > 0.5, "otherwise now"
assert max(found["both channels_last, read in the default order"]) < 1e-6, "otherwise now"
assert found["the image alone"] == [None] * 4, "otherwise now"
PYTHON
venv/bin/python check.py 2>/dev/null
