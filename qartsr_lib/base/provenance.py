"""Where a number comes from: revision, versions, device, memory. No paths, no host names."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qartsr_lib.base import native, paths

_ROOT = Path(__file__).resolve().parents[1]
#: Packages whose version can move a digit.
PACKAGES = ("torch", "torchvision", "diffusers", "pyiqa", "numpy", "scipy", "pillow")
#: What cached values depend on: rooms, and modules of others. All else chooses, aggregates or shows.
COMPUTING = (
    *("base/native", "images", "quant", "backbones", "training/finetuning", "methods"),
    *("study/evaluator.py", "study/experiments"),
)


@lru_cache(maxsize=8)
def git_state(folder: Path = _ROOT) -> dict[str, object]:
    """{"revision": sha or None, "dirty": bool or None} of the checkout when the process asks first; None without git.

    What runs write themselves (results/, figures/) makes none dirty. QARTSR_REVISION tells a copy without git its one.
    """
    revision = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    sources = (":(top)", ":(top,exclude)results", ":(top,exclude)figures")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *sources)
    revision = revision or paths.variable("QARTSR_REVISION")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def environment(device: str = "cpu") -> dict[str, object]:
    """What the same inputs may give other digits on: part of cache keys and of run records.

    The number of threads changes the order of float32 sums in convolutions; so do compiled loops in training.
    """
    on_gpu = device.startswith("cuda")
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "compiled_loops": native.available() if device == "cpu" else None,
        "tf32": _tf32() if on_gpu else None,
    }


def _tf32() -> bool:
    """Whether float32 is rounded to TF32 in matrix products or convolutions."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    told = Path("/proc/cpuinfo")
    names = re.search(r"^model name.*?:(.*)", told.read_text("utf-8") if told.is_file() else "", re.MULTILINE)
    return names[1].strip() if names else platform.machine()


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


@lru_cache(maxsize=1)
def source_sha256() -> str:
    """sha256 over the library's modules that compute: an edited method must not find its old runs."""
    return folder_sha256(*COMPUTING)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def folder_sha256(*places: str) -> str:
    """sha256 over the sources in folders (or single modules) of this package."""
    digest = hashlib.sha256()
    for folder in (_ROOT / place for place in places):
        found = sorted(path for kind in ("*.py", "*.cpp", "*.h") for path in folder.rglob(kind))
        for path in found or [folder]:
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
