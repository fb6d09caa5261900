"""The untracked store of finished pieces of work, so that an interrupted sweep continues.

One entry is one folder, `<root>/<kind>/<first two digits>/<key>/`, whose key is the sha256 of all
that determines its content. It appears by one rename, after its files and their hashes are on
disk: a process killed at any moment leaves either a whole entry or none, and two processes that
make the same entry at once both end with a whole one. An entry whose files do not match their
hashes is removed and made again.

Generations. `make reproduce` always computes, yet an interrupted one must not lose hours. The
store of a profile, `.cache/runs/<profile>`, is therefore one generation, with the names of the
notebooks that invocations of the runner have begun and not done: killed, interrupted, failed. It is
finished when none is left, and the next invocation begins by removing a finished generation; an
unfinished one is continued. The same holds for an invocation with some of the notebooks: it removes
a finished generation and computes, continues an unfinished one, and finishes it only if it does all
that is left, never an interrupted run's other notebooks. A generation without names (made outside
the runner) has all notebooks left. A notebook that is run alone, without the runner, uses whatever
generation is there, never removes it and never finishes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from qartsr_lib.base import paths
from qartsr_lib.base.atomic import explained, write_text
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import flush, sha256

_MANIFEST = "entry.json"
_FINISHED, _LEFT = "FINISHED", "LEFT"


def canonical_json(value: object) -> str:
    """One text per value: keys sorted, no spaces, floats in full; tuples count as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stable_hash(value: object) -> str:
    """sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class RunCache:
    """Folders by key.

    Args:
        root: the generation's folder; created when first written to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @classmethod
    def for_profile(cls, profile: str) -> RunCache:
        """The store that all notebooks of `profile` share."""
        return cls(paths.cache_dir() / "runs" / profile)

    def folder(self, kind: str, key: str) -> Path:
        """Where an entry lies, whether it exists or not."""
        return self.root / kind / key[:2] / key

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's folder, or None when it is absent; a damaged one is removed and counts as absent."""
        folder = self.folder(kind, key)
        if not folder.is_dir():
            return None
        if _is_whole(folder):
            return folder
        with FileLock(self.root / ".damaged.lock"):
            if _is_whole(folder):  # mended by another process since
                return folder
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """Make an entry: `fill` writes files (no subfolders) into the empty folder that it is given.

        Returns:
            The entry's folder; when another process was faster, that one's entry.

        Raises:
            QartsrError: the disk is full or the folder cannot be written.
        """
        folder = self.folder(kind, key)
        temporary = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
            fill(temporary)
            files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / _MANIFEST).write_text(json.dumps({"key": key, "files": files}, indent=1), encoding="utf-8")
            for path in temporary.iterdir():
                flush(path)
            os.replace(temporary, folder)
        except OSError as error:
            if self.get(kind, key):  # the rename failed because another process made the entry
                return folder
            raise explained(error, self.root) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def get_or_put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """The entry's folder, made when absent."""
        return self.get(kind, key) or self.put(kind, key, fill)

    def begin(self, notebooks: Iterable[str] = (), known: Iterable[str] = ()) -> bool:
        """Start an invocation of the runner: True when an unfinished generation is continued.

        Args:
            notebooks: what it will do.
            known: all notebooks; others that are left are forgotten.
        """
        if (self.root / _FINISHED).exists():
            # Moved aside first: a process killed while removing must not leave a half-removed store.
            aside = Path(tempfile.mkdtemp(prefix=f".old-{self.root.name}-", dir=self.root.parent))
            os.replace(self.root, aside / "store")
        for leftover in self.root.parent.glob(f".old-{self.root.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        continued = self.root.is_dir()
        self.root.mkdir(parents=True, exist_ok=True)
        known = set(known)
        self._write_left({*notebooks} | (self._left(known) & known if continued else set()))
        return continued

    def finish(self, notebooks: Iterable[str] = ()) -> None:
        """`notebooks` are done; when none is left the generation is finished, and the next `begin` removes it."""
        left = self._left() - {*notebooks}
        self._write_left(left)
        if left:
            return
        write_text(self.root / _FINISHED, "This generation is complete; the next make reproduce starts a clean one.\n")

    def _left(self, unknown: Iterable[str] = ()) -> set[str]:
        """Names of the notebooks that are left; `unknown` where none are written down."""
        try:
            return set((self.root / _LEFT).read_text(encoding="utf-8").split("\n")) - {""}
        except FileNotFoundError:
            return set(unknown)

    def _write_left(self, names: Iterable[str]) -> None:
        write_text(self.root / _LEFT, "\n".join(sorted(names)))

    def lock(self) -> FileLock:
        """Held by the runner, so that no second one removes the store under it; freed by any kind of death.

        Raises:
            QartsrError: another runner holds it.
        """
        self.root.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root.parent / f".{self.root.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise QartsrError(
                f"another `make reproduce PROFILE={self.root.name}` is running here; wait for it or stop it"
            ) from error
        return lock


def _is_whole(folder: Path) -> bool:
    """Whether the files of an entry are those that were written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["key"] == folder.name and all(
            sha256(folder / name) == wanted for name, wanted in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
