#!/usr/bin/env bash
# transformers 5.23.0, CLIPTokenizer with the files of Stable Diffusion 2.x, whose padding is "!" (id 0): an exclamation
# mark in a prompt becomes padding. It is cut out before words are split, as every special token is, so it no longer is
# the token of a word's end that the text encoder was trained with, it cannot be told from padding by its id, and
# decoding without special tokens leaves it out. With Stable Diffusion 1.x's files, which pad with the end token, the
# same prompt keeps it. One-step super-resolution that embeds a fixed prompt, as OSEDiff does, so embeds another prompt
# than the one that was written. (Of the two files that name the padding special_tokens_map.json counts.)
# Remedy: no "!" in prompts for models of 2.x, or tokenize the prompt with the other padding and pad by hand.
#
# Seen (a vocabulary of letters, where "!" at a word's end has the id 29 and "!" the id 0; "a cat!" padded to 9):
#   1.x's files: [58, 30, 3, 1, 49, 29, 59, 59, 59], decoded "a cat !"
#   2.x's files: [58, 30, 3, 1, 49, 0, 59, 0, 0], decoded "a cat"
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet transformers==5.23.0
cat >check.py <<'PYTHON'
import json
from pathlib import Path

from transformers import CLIPTokenizer

letters = "abcdefghijklmnopqrstuvwxyz.,"
words = ["!", *letters, "!</w>", *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
number = {word: index for index, word in enumerate(words)}
special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
described = special | {"pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
ids, texts = {}, {}
for version, padding in ("1.x", "<|endoftext|>"), ("2.x", "!"):
    folder = Path(version)
    folder.mkdir()
    for name, content in {
        "vocab.json": number,
        "tokenizer_config.json": described,
        "special_tokens_map.json": special | {"pad_token": padding},
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids[version] = tokenizer("a cat!", padding="max_length", max_length=9).input_ids
    texts[version] = tokenizer.decode(ids[version], skip_special_tokens=True).strip()
    print(f"{version}'s files: {ids[version]}, decoded {texts[version]!r}")
start, end = number["<|startoftext|>"], number["<|endoftext|>"]
prompt = [start, number["a</w>"], number["c"], number["a"], number["t</w>"]]
assert ids["1.x"] == [*prompt, number["!</w>"], end, end, end], "1.x's files give other tokens now"
assert ids["2.x"] == [*prompt, number["!"], end, 0, 0], "an exclamation mark is a token of its own now"
assert "!" in texts["1.x"] and "!" not in texts["2.x"], "both decode alike now"
PYTHON
venv/bin/python -W ignore check.py
