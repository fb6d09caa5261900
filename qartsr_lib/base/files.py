"""Files: their hashes, writing them so that no reader sees a half-written one, and what often lies in their place."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from qartsr_lib.base.errors import QartsrError

_NOT_WRITABLE = (errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_FULL = 2**20  # free bytes, below which a disk counts as full where an error does not say what it is
_PAGE = "a web page in place of the file; download the file itself, not the page about it"
#: First bytes, in small letters -> what the file is.
_STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file; run git lfs pull, or download the file",
    **dict.fromkeys((b"<!doctype html", b"<html", b"<head"), _PAGE),
}


def sha256(path: str | Path) -> str:
    """sha256 of a file, read now: tells a damaged file from a whole one."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: str | Path) -> str:
    """sha256 of a file, remembered while its size and time of change stay the same."""
    path = Path(path)
    status = path.stat()
    return _remembered(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8192)
def _remembered(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def stand_in(head: bytes, more: Mapping[bytes, str] = {}) -> str | None:  # noqa: B006 - never written
    """What a file that begins with `head` is in place of the one that was meant, of these kinds and `more`; or None."""
    if not head:
        return "an empty file (0 bytes); get it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for start, what in (_STAND_INS | more).items() if text.startswith(start)), None)


def installed_file(place: str) -> Path | None:
    """A file of an installed package ("skimage/data/cat.png"), which is not imported; None where it is not there."""
    package, _, inside = place.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    return path if path and path.is_file() else None


def flush(path: str | Path) -> None:
    """Return when the bytes of a file are on disk."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path` (of its suffix), flush it, and rename it to `path`.

    Missing folders are made; an earlier file survives any failure. A QartsrError where `write_error` has a line.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        flush(temporary)
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are meant to be read
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(error, path) from error
    except QartsrError:
        raise
    except Exception as error:  # safetensors and torch have kinds of their own for a full disk
        if temporary is None or shutil.disk_usage(path.parent).free >= _FULL:
            raise
        raise write_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 with `write_atomically`."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_error(error: OSError, path: Path) -> Exception:
    """What to raise for an error met while writing `path`: one line for what users can mend, else `error`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QartsrError(f"{path}: the disk is full; free some space and run again, finished work is kept")
    if isinstance(error, IsADirectoryError):
        return QartsrError(f"{path}: is a folder; name a file")
    # A folder that cannot be made (/proc/x) gives ENOENT; where there is one, it means another file.
    no_folder = error.errno == errno.ENOENT and not path.parent.is_dir()
    if no_folder or isinstance(error, PermissionError) or error.errno in _NOT_WRITABLE:
        return QartsrError(f"{path}: cannot be written ({error.strerror}); choose another folder (or set QARTSR_HOME)")
    return error


def check_name(path: Path, named: str) -> Path:
    """`path`, or the nearest folder above it, that is there; a QartsrError where a name below it is too long for it.

    `named` is what the user called it.
    """
    path = path.absolute()
    place = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    for name in path.relative_to(place).parts:
        try:
            os.lstat(place / name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                size = len(os.fsencode(name))
                raise QartsrError(f"{named}: the name {name[:30]}... is too long ({size} bytes); shorten it") from error
    return place


def check_writable(folder: Path, named: str) -> None:
    """Refuse now a folder that cannot be made or written after hours; `named` is what the user called it."""
    place = check_name(folder, named)
    if not place.is_dir():
        raise QartsrError(f"{named}: {place} is a file; name another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise QartsrError(f"{named}: cannot be written in {place}; name another folder")
