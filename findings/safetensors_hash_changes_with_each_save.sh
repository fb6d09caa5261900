#!/usr/bin/env bash
# safetensors 0.8.0 (torch 2.15.0): saving the same tensors with the same metadata gives other bytes each time as soon as
# the metadata has two keys: they are written in the order of a hash map with a random seed. Tensors are ordered, and with
# one key or none the bytes repeat. So the SHA-256 of a weight file with metadata (LoRA files carry dozens of keys, what
# transformers and diffusers write one) says nothing about whether two trainings, or two savings, ended with the same
# weights. Remedies: hash the tensors; or put all metadata into one key, as JSON.
#
# Seen (20 savings each): metadata of 0 keys 1 content, of 1 key 1, of 2 keys 2, of 8 keys 20; tensors alike in all.
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
cat >check.py <<'PYTHON'
import torch
from safetensors.torch import load, save

tensors = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.ones(3)}
for keys in (0, 1, 2, 8):
    metadata = {f"key{number}": f"{number}" for number in range(keys)} or None
    files = {save(tensors, metadata) for _ in range(20)}
    print(f"metadata of {keys} keys: {len(files)} contents of 20 savings")
    assert all(torch.equal(load(file)[name], tensor) for file in files for name, tensor in tensors.items())
    assert (len(files) > 1) == (keys > 1), "safetensors behaves otherwise now"
PYTHON
venv/bin/python -W ignore check.py
