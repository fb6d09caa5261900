"""The loops around integer products (C++), for `around_product`."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

from qartsr_lib.base import native
from qartsr_lib.base.native import DOUBLE, FLOAT, POINTER, WHOLE

ARGUMENTS = {
    "encode": [
        *(*[POINTER] * 3, WHOLE, *[POINTER] * 5, *[FLOAT] * 3, WHOLE),
        *(POINTER, *[WHOLE] * 4, *[POINTER] * 3),
    ],
    "finish": [
        *(POINTER, WHOLE, WHOLE, *[POINTER] * 6, WHOLE),
        *(*[POINTER] * 3, WHOLE, *[POINTER] * 3),
    ],
    "side": [POINTER, POINTER, *[WHOLE] * 3, POINTER],
    "moments": [POINTER, *[WHOLE] * 4, POINTER],
    "fold": [POINTER, *[WHOLE] * 5, DOUBLE, *[POINTER] * 4],
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where they cannot be had."""
    return native.compiled(Path(__file__).parent, ARGUMENTS, "-ffp-contract=fast")
