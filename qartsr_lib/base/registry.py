"""Name -> object tables that fill themselves from the modules of a subpackage."""

from __future__ import annotations

import importlib
import pkgutil
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from qartsr_lib.base.errors import QartsrError, did_you_mean
from qartsr_lib.base.files import sha256

T = TypeVar("T")
_PROCESS = secrets.token_hex(8)
_outside: dict[str, str] = {}


def outside(*names: object) -> dict[str, dict[str, str]]:
    """What keys of results made with entries of these `names` need to hold of those registered outside of this package.

    The hash of the file that did it; for a notebook's cell, as its definitions may stand in others, a value of this
    process.
    """
    found = {name: _outside[name] for name in map(str, names) if name in _outside}
    return {"outside": found} if found else {}


class Registry(Generic[T]):
    """A table of plug-ins: one file in `package` plus one `register` call adds an entry.

    Its modules are imported at the first look-up of what is not there yet; "" where that is done elsewhere.
    `kind` is what an entry is, for messages ("metric"); `check`: what is wrong with a new one, by its name, itself and
    those that are there, or "". One that has a `name` is called by it.
    """

    def __init__(
        self, kind: str, package: str = "", check: Callable[[str, T, Mapping[str, T]], str] = lambda *_: ""
    ) -> None:
        self.kind, self._check = kind, check
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator (or plain call) that stores its argument under `name`; names are unique."""

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            own = getattr(entry, "name", name)
            wrong = f"it calls itself {own!r}; use one name" if own != name else self._check(name, entry, self._entries)
            if wrong:
                raise QartsrError(f"{self.kind} {name!r} cannot be registered: {wrong}")
            self._entries[name] = entry
            caller = sys._getframe(1)
            if not caller.f_globals.get("__name__", "").startswith(f"{__package__.partition('.')[0]}."):
                file = Path(caller.f_code.co_filename)
                _outside[name] = sha256(file) if file.is_file() else _PROCESS
            return entry

        return store

    def get(self, name: str) -> T:
        """The entry called `name`, or a QartsrError that lists the known names and the nearest ones."""
        if name not in self._entries and name not in self.names():
            hint = did_you_mean(name, self._entries)
            known = f"known: {', '.join(self._entries) or 'none'}"
            raise QartsrError(f"unknown {self.kind} {name!r}{hint and '; ' + hint} ({known})")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, in order of registration."""
        if self._package:
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._package = ""  # once, but again after a module that could not be imported
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
