#!/usr/bin/env bash
# papermill 2.7.0 (ipykernel 7.4.0, nbclient 0.11.0, Linux): after the kernel died in the middle of a notebook, the saved
# copy says that every cell was "completed", the one that killed it and those that never ran included. It holds no error
# output, no red line and no exception, all of which it has after a cell that merely raises. The exit status (138) and
# the terminal alone tell. So whoever looks at the copy, its HTML or its metadata sees a success.
#
# Seen (of five cells, the third's kernel is killed as the OOM killer does):
#   killed: exit 138, statuses ['completed', 'completed', 'completed', 'completed', 'completed'], exceptions [], error outputs 0
#   raised: exit 1, statuses ['completed', 'completed', 'failed', 'pending', 'pending'], exceptions [True], error outputs 1
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet papermill==2.7.0 ipykernel==7.4.0 nbclient==0.11.0 jupyter_client==8.10.0 nbformat==5.11.1
export JUPYTER_DATA_DIR="$folder/jupyter" JUPYTER_RUNTIME_DIR="$folder/runtime" IPYTHONDIR="$folder/ipython"
cat >check.py <<'PYTHON'
import subprocess
import sys

import nbformat
from nbformat.v4 import new_code_cell, new_notebook


def seen(name, third):
    sources = ["1", "2", third, "4", "5"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernel})
    nbformat.write(notebook, f"{name}.ipynb")
    command = [sys.executable, "-m", "papermill", f"{name}.ipynb", f"{name}-out.ipynb", "--no-progress-bar"]
    status = subprocess.run(command, capture_output=True).returncode
    copy = nbformat.read(f"{name}-out.ipynb", as_version=4)
    cells = [cell for cell in copy.cells if cell.cell_type == "code"]
    facts = [cell.metadata.papermill for cell in cells]
    exceptions = [fact.exception for fact in [copy.metadata.papermill, *facts] if fact.exception]
    errors = sum(output.output_type == "error" for cell in cells for output in cell.outputs)
    found = status, [fact.status for fact in facts], exceptions[:1], errors
    print("{}: exit {}, statuses {}, exceptions {}, error outputs {}".format(name, *found))
    return found


killed = seen("killed", "import os; os.kill(os.getpid(), 9)")
raised = seen("raised", "1 / 0")
assert raised == (1, ["completed", "completed", "failed", "pending", "pending"], [True], 1), "an ordinary failure"
assert killed == (138, ["completed"] * 5, [], 0), "papermill behaves otherwise now"
PYTHON
venv/bin/python check.py
