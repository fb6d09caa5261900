"""Write files so that a reader never sees a half-written one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from qartsr_lib.base.errors import QartsrError

_NOT_WRITABLE = (errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it.

    Args:
        path: final file; its folder is created when missing.
        write: called with the temporary path (same suffix as `path`, so that libraries which
            choose a format by suffix behave).

    Returns:
        `path` as a Path. An earlier file of that name survives any failure.

    Raises:
        QartsrError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are meant to be read
        os.replace(temporary, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def explained(error: OSError, path: Path) -> Exception:
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


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 with `write_atomically`."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
