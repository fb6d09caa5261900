"""The untracked store of finished pieces of work, so that an interrupted sweep continues.

One entry is one folder, `<root>/<kind>/<first two digits>/<key>/`, whose key is the sha256 of all that determines its
content. It appears by one rename, after its files and their hashes are on disk, whole or not at all.

`make reproduce` always computes, yet an interrupted one must not lose hours. So the store of a profile,
`.cache/runs/<profile>`, is one generation, and `.<profile>.left` beside it lists the notebooks that invocations of the
runner have begun and not done. While any is left, what is run next continues the generation; when none is, it begins by
removing it. A notebook run without the runner uses what is there; where there was nothing, all notebooks are left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import flush, sha256, write_error, write_text

_MANIFEST = "entry.json"


def stable_hash(value: object) -> str:
    """sha256 of the one JSON text of a value: keys sorted, no spaces, floats in full; tuples count as lists."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class RunCache:
    """Folders by key, in the generation's folder `root`, which is created when first written to."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._left_file = self.root.parent / f".{self.root.name}.left"

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
        """Make an entry (or find another process' one): `fill` writes files into the empty folder that it is given."""
        folder = self.folder(kind, key)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent, ignore_cleanup_errors=True) as made:
                fill(Path(made))
                files = {path.name: sha256(path) for path in sorted(Path(made).iterdir())}
                Path(made, _MANIFEST).write_text(json.dumps({"key": key, "files": files}, indent=1), encoding="utf-8")
                for path in Path(made).iterdir():
                    flush(path)
                os.replace(made, folder)
        except OSError as error:
            if not self.get(kind, key):  # else the rename failed because another process made the entry
                raise write_error(error, self.root) from error
        return folder

    def get_or_put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """The entry's folder, made when absent."""
        return self.get(kind, key) or self.put(kind, key, fill)

    def begin(self, notebooks: Iterable[str], known: Iterable[str]) -> bool:
        """Start an invocation with `notebooks`: True when an unfinished generation is continued.

        Of the others that are left, those that are not `known` any more are forgotten.
        """
        known = {*known}
        left = self._left(known)
        if not left and self.root.is_dir():
            shutil.rmtree(self.root)  # killed meanwhile, the next one goes on removing
        continued = self.root.is_dir()
        self.root.mkdir(parents=True, exist_ok=True)
        self._write_left({*notebooks} | (left & known if continued else set()))
        return continued

    def finish(self, notebook: str) -> None:
        """`notebook` is done; when none is left the generation is finished, and the next `begin` removes it."""
        self._write_left(self._left() - {notebook})

    def _left(self, unknown: Iterable[str] = ()) -> set[str]:
        """Names of the notebooks that are left; `unknown` where none are written down."""
        try:
            return set(self._left_file.read_text(encoding="utf-8").split("\n")) - {""}
        except FileNotFoundError:
            return {*unknown}

    def _write_left(self, names: Iterable[str]) -> None:
        write_text(self._left_file, "\n".join(sorted(names)))

    def lock(self) -> AcquireReturnProxy:
        """For the runner's `with`: a QartsrError where another holds it; any kind of death frees it."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self.root.parent / f".{self.root.name}.lock").acquire(timeout=0)
        except Timeout as error:
            raise QartsrError(
                f"another `make reproduce PROFILE={self.root.name}` is running here; wait for it or stop it"
            ) from error


def _is_whole(folder: Path) -> bool:
    """Whether the files of an entry are those that were written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["key"] == folder.name and all(
            sha256(folder / name) == wanted for name, wanted in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
