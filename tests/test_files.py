"""Hashes of files: what is remembered follows the file. Names that no file can have."""

from __future__ import annotations

import hashlib
import os

import pytest

from qartsr_lib.base import files
from qartsr_lib.base.errors import QartsrError


def test_a_hash_is_read_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    wanted = hashlib.sha256(b"one").hexdigest()
    assert files.sha256(file) == files.remembered_sha256(str(file)) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256", lambda path: pytest.fail(f"read {path} again"))
        assert files.remembered_sha256(file) == wanted
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert files.remembered_sha256(file) == files.sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_file_is_read_even_when_size_and_time_are_kept(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    state, before = file.stat(), files.sha256(file)
    file.write_bytes(b"onE")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files.sha256(file) != before


@pytest.mark.parametrize("there", ["", "not/there"])
def test_names_too_long_for_the_disk_are_refused_before_the_work(tmp_path, there):
    fits, long = tmp_path / there / ("n" * 255), tmp_path / there / ("n" * 256)
    files.check_writable(fits, "--out")
    for path in (long, long / "inside"):
        with pytest.raises(QartsrError, match=r"^--out x: the name n{30}\.\.\. is too long \(256 bytes\); shorten it$"):
            files.check_writable(path, "--out x")
