#!/usr/bin/env bash
# papermill 2.7.0 (PyYAML 6.0.3): a learning rate written 1e-4 is a number after `-p rate 1e-4` and a text after
# `-y 'rate: 1e-4'` or in the file of `-f`, where 2.5e-4 is a number again. PyYAML wants a point in a mantissa; papermill
# asks Python's float first, for -p alone. No warning, exit 0, and a product of the text with a count of steps is a
# longer text. So a sweep that moves from -p to a file trains with other values, or fails far from the cause.
#
# Seen (what the notebook's kernel has, type and twice its value):
#   -p rate 1e-4: float 0.0002
#   -y rate: 1e-4: str '1e-41e-4'
#   -f rate.yaml: str '1e-41e-4'
#   -y rate: 2.5e-4: float 0.0005
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet papermill==2.7.0 ipykernel==7.4.0 nbclient==0.11.0 jupyter_client==8.10.0 nbformat==5.11.1 \
	PyYAML==6.0.3
export JUPYTER_DATA_DIR="$folder/jupyter" JUPYTER_RUNTIME_DIR="$folder/runtime" IPYTHONDIR="$folder/ipython"
cat >check.py <<'PYTHON'
import subprocess
import sys

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
cells = [
    new_code_cell("rate = 0.0", metadata={"tags": ["parameters"]}),
    new_code_cell("print(type(rate).__name__, repr(2 * rate))"),
]
nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), "rate.ipynb")


def seen(*words):
    command = [sys.executable, "-m", "papermill", "rate.ipynb", "out.ipynb", "--no-progress-bar", *words]
    subprocess.run(command, check=True, capture_output=True)
    output = nbformat.read("out.ipynb", as_version=4).cells[-1].outputs[0].text.strip()
    print(f"{' '.join(words)}: {output}", flush=True)
    return output


with open("rate.yaml", "w") as file:
    file.write("rate: 1e-4\n")
assert seen("-p", "rate", "1e-4") == "float 0.0002"
assert seen("-y", "rate: 1e-4") == "str '1e-41e-4'", "papermill behaves otherwise now"
assert seen("-f", "rate.yaml") == "str '1e-41e-4'", "papermill behaves otherwise now"
assert seen("-y", "rate: 2.5e-4") == "float 0.0005"
PYTHON
venv/bin/python check.py
