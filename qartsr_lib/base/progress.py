"""One progress bar for JupyterLab, terminals and logs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from time import monotonic

from tqdm import tqdm

from qartsr_lib.base import paths

PARTS = 30  # of the total; a bar in a log has a state after each


def progress(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """Iterate over `items` with a bar named `label`.

    A terminal is refreshed often. Elsewhere a bar leaves at most 60 states, as a pipe keeps them all and a kernel
    cannot tell whether JupyterLab shows it or papermill logs it. QARTSR_LOG_PROGRESS makes a terminal count as a pipe.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    in_log = paths.variable("QARTSR_LOG_PROGRESS") is not None
    if sys.stderr.isatty() and not in_log:
        return iter(tqdm(items, desc=label, total=total, file=sys.stderr, mininterval=0.2, dynamic_ncols=True))
    # position: a bar within another would else move the cursor, which leaves codes in a log
    bar = tqdm(desc=label, total=total, file=sys.stderr, mininterval=0, miniters=1, ncols=90, position=0)
    return _sparse(items, bar, seconds=5 if "ipykernel" in sys.modules and not in_log else 30)


def _sparse(items: Iterable, bar: tqdm, seconds: float) -> Iterator:
    """The first state, the last, and between them one after each part of the total and whenever the time has doubled.

    Doublings (28 in twenty years) are a long loop's signs of life. States lie at least `seconds` apart.
    """
    done, start = 0, monotonic()
    shown = start
    try:
        for item in items:
            yield item
            done += 1
            now = monotonic()
            advanced = done - bar.n >= (bar.total or math.inf) / PARTS
            if now - shown >= seconds and (advanced or now - start >= 2 * (shown - start)):
                bar.update(done - bar.n)
                shown = now
    finally:
        bar.n = done  # what close shows
        bar.close()
