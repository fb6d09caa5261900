"""Where a number comes from: revision, versions, device, memory. No paths, no host names."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qartsr_lib.base import native

_ROOT = Path(__file__).resolve().parents[1]
REVISION_VARIABLE = "QARTSR_REVISION"
#: Packages whose version can move a digit.
PACKAGES = ("torch", "torchvision", "diffusers", "pyiqa", "numpy", "scipy", "pillow")

#: What cached values depend on: rooms, and modules of others. All else chooses, aggregates or shows.
COMPUTING = (
    "base/native",
    "images",
    "quant",
    "backbones",
    "training/finetuning",
    "methods",
    "study/evaluator.py",
    "study/experiments",
)


def git_state(folder: Path | None = None) -> dict[str, object]:
    """{"revision": sha or None, "dirty": bool or None} of the checkout; None outside git or without git.

    What runs write themselves (results/, figures/) makes no checkout dirty.

    A machine that got the files without their history is told the revision by QARTSR_REVISION.
    """
    return dict(_git_state(folder or Path(__file__).resolve().parent))


@lru_cache(maxsize=8)
def _git_state(folder: Path) -> dict[str, object]:
    """Asked once: what a process has loaded does not change with the checkout."""
    revision = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    sources = (":(top)", ":(top,exclude)results", ":(top,exclude)figures")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *sources)
    told = None if revision else os.environ.get(REVISION_VARIABLE)
    return {"revision": revision or told or None, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of `PACKAGES` that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(device: str = "cpu") -> dict[str, object]:
    """What the same inputs may give other digits on: part of cache keys and of run records.

    The thread count belongs to it: it changes the order of float32 sums in convolutions. So does whether
    training's loops are compiled.
    """
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "compiled_loops": native.available() if device == "cpu" else None,
        "tf32": _tf32() if device.startswith("cuda") else None,
    }


def _tf32() -> bool:
    """Whether float32 is rounded to TF32 in matrix products or convolutions."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


@lru_cache(maxsize=1)
def source_sha256() -> str:
    """sha256 over the library's modules that compute: an edited method must not find its old runs."""
    return _sha256(path for place in COMPUTING for path in _sources(_ROOT / place))


def folder_sha256(folder: str) -> str:
    """sha256 over a folder's sources, for results that depend on one that counts as not computing."""
    return _sha256(_sources(_ROOT / folder))


def _sources(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(p for kind in ("*.py", "*.cpp", "*.h") for p in folder.rglob(kind))


def _sha256(modules: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in modules:
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
