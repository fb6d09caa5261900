"""What a process of the command line imports; never how long it takes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from qartsr_lib.base.registry import Registry
from qartsr_lib.images.image import write_png

HEAVY = {
    *("bitsandbytes", "matplotlib", "pandas", "peft", "pyiqa", "scipy", "sklearn", "timm", "torchvision"),
    *("torch._dynamo", "torch._inductor", "transformers", "trio", "triton"),
}
SHOW = """
import atexit, json, runpy, sys
out = sys.argv.pop(1)
atexit.register(lambda: json.dump(sorted(sys.modules), open(out, "w")))
runpy.run_module("qartsr_lib", run_name="__main__", alter_sys=True)
"""


def imported(tmp_path, *words, script=SHOW):
    """(exit status, names of all modules that the command line had imported in its own process)."""
    found = tmp_path / "modules.json"
    environment = os.environ | {"QARTSR_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(found), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode, set(json.loads(found.read_text()))


@pytest.fixture
def photograph(tmp_path):
    return write_png(tmp_path / "in" / "cat.png", torch.rand(1, 3, 8, 8))


def test_upscale_imports_what_it_needs(photograph, tmp_path):
    status, modules = imported(tmp_path, "upscale", photograph, "--out", tmp_path / "out")
    assert status == 0 and (tmp_path / "out" / "cat.png").exists()
    assert "diffusers" in modules and not HEAVY & modules
    unused = ("methods", "training", "images.metrics", "deploy.int8", "deploy.packed_file", "show", "study.results")
    assert not {f"qartsr_lib.{name}" for name in unused} & modules


@pytest.mark.parametrize("words", [["--help"], ["upscale", "--help"], ["upscale"], ["upscale", "--tile", "x"]])
def test_help_and_wrong_words_import_no_tensors(tmp_path, words):
    _, modules = imported(tmp_path, *words)
    assert not {"torch", "numpy", "diffusers"} & modules


def test_a_wrong_image_is_told_before_networks_are_imported(tmp_path):
    status, modules = imported(tmp_path, "upscale", tmp_path / "none.png", "--out", tmp_path / "out")
    assert status == 2 and "diffusers" not in modules


AFTERWARDS = """
import json, sys
from qartsr_lib.base import lean_imports
lean_imports.import_networks()
assert "diffusers" not in sys.modules  # not chosen
lean_imports.choose_lean_imports()
import qartsr_lib.backbones  # a notebook's way to the networks
at_once = sorted(sys.modules)
import scipy, transformers, torch._dynamo
from diffusers import AutoencoderKL, UNet2DConditionModel
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
json.dump(at_once, open(sys.argv[1], "w"))
"""


def test_all_else_can_be_imported_afterwards(tmp_path):
    status, modules = imported(tmp_path, script=AFTERWARDS)
    assert status == 0 and "diffusers" in modules and not HEAVY & modules


def test_an_entry_that_is_there_is_not_looked_for_in_other_modules():
    registry = Registry("fruit", "no_such_package")
    registry.register("apple")(1)
    assert registry.get("apple") == 1
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        registry.get("pear")
