"""Name -> object tables that fill themselves from the modules of a subpackage."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from qartsr_lib.base.errors import QartsrError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of plug-ins: one file in `package` plus one `register` call adds an entry.

    Every module of `package` is imported at the first look-up of what is not there yet, so there is
    no central list to edit. An import error is not swallowed: it names the file that is broken.

    Args:
        kind: what the entries are, in the singular, for messages ("metric").
        package: the subpackage whose modules register entries (`__package__` of the module with the registry);
            empty where those who register are imported before.
    """

    def __init__(self, kind: str, package: str = "") -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator (or plain call) that stores its argument under `name`; names are unique."""

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return store

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            QartsrError: no such entry; the message lists the known names and the nearest one.
        """
        if name not in self._entries:
            self._discover()
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(self._entries) or "none"
        raise QartsrError(f"unknown {self.kind} {name!r}{hint} (known: {known})")

    def names(self) -> list[str]:
        """All registered names, in order of registration."""
        self._discover()
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _discover(self) -> None:
        if self._discovered or not self._package:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True
