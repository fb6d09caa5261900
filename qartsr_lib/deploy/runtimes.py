"""How a packed model computes, and what its process does with memory; imports no tensors before they are needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry

if TYPE_CHECKING:
    from qartsr_lib.backbones.base import OneStepSR

#: Name -> function from a packed model to one that upscales in that way.
RUNTIMES: Registry[Callable[[OneStepSR], OneStepSR]] = Registry("runtime")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


@RUNTIMES.register("simulate")
def simulate(model: OneStepSR) -> OneStepSR:
    """Floating-point products of dequantized numbers, on any device."""
    return model


@RUNTIMES.register("int8")
def int8(model: OneStepSR) -> OneStepSR:
    """Integer products on a CPU; QartsrError for a model on a GPU, or as int8_form says."""
    from qartsr_lib.deploy.blocks import fuse_
    from qartsr_lib.deploy.int8 import int8_form

    if model.prompt_embedding.is_cuda:
        raise QartsrError("runtime int8 computes on a CPU; on a GPU use simulate, which is faster there")
    fuse_(converted := int8_form(model))
    return converted


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process; returns whether the C library understood (others than glibc do not).

    By default glibc asks the system for every large tensor anew, and touching new pages costs more than many
    operations do: full precision and low bits alike gain a quarter and more. Peaks stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_bytes_of(call: Callable[[], object]) -> int | None:
    """How far `call` raises this process's resident memory at its highest; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024
