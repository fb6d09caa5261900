"""C++ loops, compiled once for this machine (a few seconds) and loaded; without a compiler, callers do with PyTorch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically

POINTER, WHOLE, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_double
#: Tried in turn: threads and this CPU's instructions may both be missing.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
SHARED_HEADERS = Path(__file__).resolve().parent
SHARED = (f"-I{SHARED_HEADERS}", "-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-w")


def compiled(folder: Path, arguments: Mapping[str, Sequence], *options: str) -> ctypes.CDLL | None:
    """The functions of the C++ files in `folder` (name -> ctypes of arguments), without results; None without them."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "c++", "clang++"))), None)
    if compiler is None or os.name != "posix":
        return None
    for flags in FLAGS:
        try:
            loaded = ctypes.CDLL(str(_built(folder, [compiler, *SHARED, *options, *flags])))
        except (OSError, QartsrError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home folder
            continue
        for name, types in arguments.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = types, None
        return loaded
    return None


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether loops can be compiled here."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "nothing.cpp").write_text('#include "vectors.h"\nextern "C" void nothing() {}\n', encoding="utf-8")
        return compiled(Path(folder), {"nothing": []}) is not None


def at(*tensors: torch.Tensor | None) -> list[int | None]:
    """Where the numbers of `tensors` begin, for a function of a library."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _built(folder: Path, command: list[str]) -> Path:
    """The library in `paths.loops_dir`, under a name that tells sources, compiler and this CPU's instructions."""
    files = (*folder.iterdir(), *SHARED_HEADERS.iterdir())
    sources = sorted(path for path in files if path.suffix in (".cpp", ".h"))
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(macros + repr(command[2:]).encode())  # without compiler and include folder
    digest.update(b"".join(source.read_bytes() for source in sources))
    path = paths.loops_dir() / f"{digest.hexdigest()[:24]}.so"
    if not path.is_file():
        units = [str(source) for source in sources if source.suffix == ".cpp"]
        write_atomically(path, lambda temporary: _run([*command, *units, "-o", str(temporary)]))
    return path


def _run(words: list[str]) -> bytes:
    return subprocess.run(words, check=True, capture_output=True).stdout
