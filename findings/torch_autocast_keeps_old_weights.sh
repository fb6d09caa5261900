#!/usr/bin/env bash
# torch 2.15.0 (CPU): within one autocast region a layer goes on computing with the weights that it had at its first
# use. Autocast keeps the bfloat16 copy of every trained weight until the outermost region ends, and a change of the
# weight, by an optimizer or by quantizing it in place, does not renew the copy. So a region around a loop instead of
# around its body trains without getting anywhere, the gradients being those of the first weights, and a search that
# rounds one layer after another finds that none of them matters. Only weights with requires_grad are kept, so that the
# same search over a frozen network is right.
# Remedy: enter autocast anew for each pass, or autocast(..., cache_enabled=False).
#
# Seen (one convolution, weights in bfloat16 in all rows):
#   five steps of SGD, a region around all    five times the same loss
#   a region around each                      the loss falls with every step
#   around all, cache_enabled=False           the same falling losses
#   weights rounded to 4 levels in place, between two passes of one region: the output does not change;
#   after requires_grad_(False) it does
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
from contextlib import nullcontext
from functools import partial

import torch

bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)


def new_layer():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 8, 3), torch.rand(1, 3, 16, 16)


def losses(outer, inner):
    layer, image = new_layer()
    optimizer, seen = torch.optim.SGD(layer.parameters(), lr=0.2), []
    with outer():
        for _ in range(5):
            optimizer.zero_grad()
            with inner():
                loss = layer(image).float().square().mean()
            loss.backward()
            optimizer.step()
            seen.append(round(loss.item(), 4))
    return seen


around_all, around_each = losses(bfloat16, nullcontext), losses(nullcontext, bfloat16)
uncached = losses(partial(bfloat16, cache_enabled=False), nullcontext)
print("around all", *around_all)
print("around each", *around_each)
print("around all, not cached", *uncached)
assert len(set(around_all)) == 1 and around_each[0] == around_all[0]
assert all(later < earlier for earlier, later in zip(around_each, around_each[1:], strict=False))
assert uncached == around_each


def unchanged(trained):
    """Whether rounding the weights between two passes of one region leaves the output as it was."""
    layer, image = new_layer()
    layer.requires_grad_(trained)
    with bfloat16():
        before = layer(image)
        with torch.no_grad():
            step = layer.weight.abs().max() / 2
            layer.weight.copy_((layer.weight / step).round().clamp(-2, 1) * step)
        return torch.equal(before, layer(image))


print("rounding changes nothing: with requires_grad", unchanged(True), "without", unchanged(False))
assert unchanged(True) and not unchanged(False)
PYTHON
venv/bin/python -W ignore check.py
