"""Name -> object tables that fill themselves from the modules of a subpackage."""

from __future__ import annotations

import hashlib
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
_IN_A_CELL = ""  # what stands for the hash of a file
_outside: dict[str, str] = {}


def outside(*names: object) -> dict[str, dict[str, str]]:
    """What keys of results made with entries of these `names` need to hold of those registered outside of this package.

    The hash of the file that did it and of the modules beside it; for a notebook's cell, as its definitions may stand
    in any other, a value of this process and of all cells that have run in it.
    """
    found = {name: _outside[name] or _cells() for name in map(str, names) if name in _outside}
    return {"outside": found} if found else {}


def from_cells(*names: object) -> list[str]:
    """Those of `names` whose entries a notebook's cell registered: no other process knows them."""
    return [name for name in map(str, names) if _outside.get(name) == _IN_A_CELL]


def _cells() -> str:
    """A value of this process and of its notebook's cells, in the order in which each ran last."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    ran = dict.fromkeys(reversed(shell.user_ns.get("In", []))) if shell else ()
    return f"{_PROCESS} {hashlib.sha256(repr(list(ran)).encode()).hexdigest()[:16]}"


def _hash(file: Path) -> str:
    """Of a file that registers and of the modules that it has imported from its folder, or from below."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    beside = {one for one in files if one.is_relative_to(file.parent) and "site-packages" not in one.parts}
    hashes = [sha256(one) for one in sorted(beside | {file}) if one.is_file()]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


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
        """Decorator (or plain call) that stores its argument under `name`, a QartsrError where that is taken.

        What was registered outside of this package is replaced from there, as when a notebook's cell runs again.
        """

        def store(entry: T) -> T:
            caller, others = sys._getframe(1), {known: one for known, one in self._entries.items() if known != name}
            ours = caller.f_globals.get("__name__", "").startswith(f"{__package__.partition('.')[0]}.")
            own = getattr(entry, "name", name)
            if name in self._entries and (ours or name not in _outside):
                wrong = "there is one already; choose another name"
            else:
                wrong = f"it calls itself {own!r}; use one name" if own != name else self._check(name, entry, others)
            if wrong:
                raise QartsrError(f"{self.kind} {name!r} cannot be registered: {wrong}")
            self._entries[name] = entry
            if not ours:
                file = Path(caller.f_code.co_filename)
                _outside[name] = _hash(file) if file.is_file() else _IN_A_CELL
            return entry

        return store

    def get(self, name: str) -> T:
        """The entry called `name`, or a QartsrError that lists the known names and the nearest ones."""
        if not isinstance(name, str) or (name not in self._entries and name not in self.names()):
            hint = did_you_mean(str(name), self._entries)
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
