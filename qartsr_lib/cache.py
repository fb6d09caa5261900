"""The untracked store of finished pieces of work, so that an interrupted sweep continues.

One entry is one folder, `<root>/<kind>/<first two digits>/<key>/`, whose key is the sha256 of all
that determines its content. It appears by one rename, after its files and their hashes are on
disk: a process killed at any moment leaves either a whole entry or none, and two processes that
make the same entry at once both end with a whole one. An entry whose files do not match their
hashes is removed and made again.

Generations. `make reproduce` always computes, yet an interrupted one must not lose hours. The
store of a profile, `.cache/runs/<profile>`, is therefore one generation: the runner marks it
finished when an invocation has ended without a failure, and the next invocation begins by removing
a finished generation. An unfinished one (killed, failed, interrupted) is continued. A notebook
that is run alone uses whatever generation is there and never removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from qartsr_lib import paths
from qartsr_lib.atomic import explained, write_text
from qartsr_lib.errors import QartsrError
from qartsr_lib.files import flush, sha256

_MANIFEST = "entry.json"
_FINISHED = "FINISHED"


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

    def begin(self) -> bool:
        """Start an invocation of the runner: True when an unfinished generation is continued."""
        if (self.root / _FINISHED).exists():
            # Moved aside first: a process killed while removing must not leave a half-removed store.
            aside = Path(tempfile.mkdtemp(prefix=f".old-{self.root.name}-", dir=self.root.parent))
            os.replace(self.root, aside / "store")
        for leftover in self.root.parent.glob(f".old-{self.root.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        continued = self.root.is_dir()
        self.root.mkdir(parents=True, exist_ok=True)
        return continued

    def finish(self) -> None:
        """Mark the generation finished: the next `begin` removes it."""
        write_text(self.root / _FINISHED, "This generation is complete; the next make reproduce starts a clean one.\n")

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
