"""One progress bar for JupyterLab, terminals and papermill logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a bar named `label`.

    A terminal or notebook that somebody watches is refreshed often; a log (papermill sets
    QARTSR_LOG_PROGRESS, and pipes are no terminals) gets a full line every 30 s instead of
    thousands of carriage returns.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    in_log = bool(os.environ.get("QARTSR_LOG_PROGRESS")) or not (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return iter(
        tqdm(
            items,
            desc=label,
            total=total,
            file=sys.stderr,
            mininterval=30.0 if in_log else 0.2,
            miniters=1 if in_log else None,
            dynamic_ncols=not in_log,
            ncols=90 if in_log else None,
            leave=True,
        )
    )
