"""The loops around integer products (folder loops), compiled once for this machine and loaded.

A C++ compiler needs a few seconds; the result stays in the cache folder, under a name that tells the sources, the
compiler and the instructions of this CPU. Without a compiler there is no library, and callers do with PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from qartsr_lib import paths
from qartsr_lib.atomic import write_atomically
from qartsr_lib.errors import QartsrError

FOLDER = Path(__file__).resolve().parent / "loops"
#: Tried in turn: threads and this CPU's instructions may both be missing.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
SHARED = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_POINTER, _WHOLE, _FLOAT, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_double
ARGUMENTS = {
    "encode": [*[_POINTER] * 3, _WHOLE, *[_POINTER] * 5, *[_FLOAT] * 3, *[_WHOLE] * 4, *[_POINTER] * 3],
    "finish": [
        *(_POINTER, _WHOLE, _WHOLE, *[_POINTER] * 6, _WHOLE),
        *(*[_POINTER] * 3, _WHOLE, *[_POINTER] * 3),
    ],
    "moments": [_POINTER, *[_WHOLE] * 4, _POINTER],
    "fold": [_POINTER, *[_WHOLE] * 5, _DOUBLE, *[_POINTER] * 4],
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops, each a function without a result; None where they cannot be had."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "c++", "clang++"))), None)
    if compiler is None or os.name != "posix":
        return None
    for flags in FLAGS:
        try:
            loaded = ctypes.CDLL(str(_built(compiler, flags)))
        except (OSError, QartsrError, subprocess.SubprocessError):
            continue
        for name, arguments in ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        return loaded
    return None


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    sources = sorted(FOLDER.iterdir())
    macros = _run([compiler, *SHARED, *flags, "-dM", "-E", "-x", "c++", os.devnull])  # tell compiler and CPU
    digest = hashlib.sha256(macros + repr((SHARED, flags)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    path = paths.cache_dir() / "loops" / f"{digest.hexdigest()[:24]}.so"
    if not path.is_file():
        units = [str(source) for source in sources if source.suffix == ".cpp"]
        write_atomically(path, lambda temporary: _run([compiler, *SHARED, *flags, *units, "-o", str(temporary)]))
    return path


def _run(words: list[str]) -> bytes:
    return subprocess.run(words, check=True, capture_output=True).stdout
