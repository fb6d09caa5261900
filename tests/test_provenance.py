"""Provenance: honest about what it does not know, and without traces of the machine's paths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from qartsr_lib.base import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def fresh_state(folder):
    provenance.git_state.cache_clear()
    return provenance.git_state(folder)


def test_git_state_follows_the_checkout(tmp_path):
    git(tmp_path, "init", "-q")
    assert fresh_state(tmp_path)["revision"] is None
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.csv").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = fresh_state(tmp_path)
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "results" / "table.csv").write_text("2")  # what a run writes itself
    assert fresh_state(tmp_path) == clean
    (tmp_path / "a.txt").write_text("two")
    assert fresh_state(tmp_path) == {"revision": clean["revision"], "dirty": True}


def test_git_state_without_git(tmp_path, monkeypatch):
    assert fresh_state(tmp_path) == {"revision": None, "dirty": None}
    monkeypatch.setenv("PATH", "")
    assert fresh_state(tmp_path) == {"revision": None, "dirty": None}


def test_environment_is_plain_json_and_names_the_threads():
    described = provenance.environment()
    assert json.loads(json.dumps(described)) == described
    assert described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_no_home_folder_in_the_record():
    assert "/home/" not in json.dumps(provenance.environment())


def test_peak_memory_is_in_mebibytes():
    before = provenance.peak_memory_mib()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert 20 < before < 200_000
    assert provenance.peak_memory_mib() >= before


def test_source_hash_is_stable():
    assert provenance.source_sha256() == provenance.source_sha256()
    assert len(provenance.source_sha256()) == 64


def test_a_copy_without_git_is_told_its_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_REVISION", "ab" * 20)
    assert fresh_state(tmp_path) == {"revision": "ab" * 20, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.csv").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert fresh_state(tmp_path)["revision"] != "ab" * 20


def test_only_a_sweep_on_workers_imports_dask():
    code = (
        "import sys; from qartsr_lib.base.lean_imports import lean_process; lean_process(); "
        "import qartsr_lib.show.gallery, qartsr_lib.study.outside; sys.exit('distributed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(provenance.__file__).parents[2]).returncode == 0
