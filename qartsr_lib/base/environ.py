"""Environment variables that are set for a while."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment_variables(settings: Mapping[str, str], others: Iterable[str] = ()) -> Iterator[None]:
    """Set `settings`; afterwards they, and `others` that something else may have set, are as they were."""
    before = {name: os.environ.get(name) for name in (*settings, *others)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
