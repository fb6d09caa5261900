"""The cache: whole entries or none, damaged ones made again, generations."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qartsr_lib.base import cache as cache_module
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import QartsrError

KEY = stable_hash("entry")
NAMES = ["00", "01", "02"]


def writer(text):
    return lambda folder: (folder / "value.txt").write_text(text)


@pytest.fixture
def cache(tmp_path):
    return RunCache(tmp_path / "runs" / "tiny")


def test_a_value_has_one_hash():
    assert stable_hash({"b": (1, 2.5), "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    assert stable_hash(0.1) != stable_hash(0.1 + 1e-16 * 2)
    with pytest.raises(ValueError, match="JSON"):
        stable_hash(float("nan"))


def test_put_then_get(cache):
    assert cache.get("sr", KEY) is None
    folder = cache.put("sr", KEY, writer("one"))
    assert cache.get("sr", KEY) == folder
    assert (folder / "value.txt").read_text() == "one"
    assert cache.get("scores", KEY) is None


def test_second_put_keeps_the_first(cache):
    cache.put("sr", KEY, writer("one"))
    folder = cache.put("sr", KEY, writer("two"))
    assert (folder / "value.txt").read_text() == "one"
    assert [path.name for path in folder.parent.iterdir()] == [KEY], "no temporary folder stays"


def damage_file(folder):
    (folder / "value.txt").write_text("onE")


def truncate_manifest(folder):
    (folder / "entry.json").write_text('{"key": "')


def list_as_manifest(folder):
    (folder / "entry.json").write_text("[]")


def remove_file(folder):
    (folder / "value.txt").unlink()


@pytest.mark.parametrize("damage", [damage_file, truncate_manifest, list_as_manifest, remove_file])
def test_damaged_entry_is_made_again(cache, damage):
    damage(cache.put("sr", KEY, writer("one")))
    assert cache.get("sr", KEY) is None
    folder = cache.get_or_put("sr", KEY, writer("one"))
    assert (folder / "value.txt").read_text() == "one"


def test_entry_that_another_process_mended_meanwhile_stays(cache, monkeypatch):
    """Two processes find the same damage; the slower one must not remove what the faster one made."""
    damage_file(cache.put("sr", KEY, writer("one")))
    looked = []

    def late(folder):
        looked.append(is_whole(folder))
        if len(looked) == 1:
            (folder / "value.txt").write_text("one")
        return looked[-1]

    is_whole = cache_module._is_whole
    monkeypatch.setattr(cache_module, "_is_whole", late)
    assert cache.get("sr", KEY) == cache.folder("sr", KEY)
    assert looked == [False, True]
    assert (cache.folder("sr", KEY) / "value.txt").read_text() == "one"


def test_failing_fill_leaves_nothing(cache):
    def fail(folder):
        (folder / "value.txt").write_text("half")
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError):
        cache.put("sr", KEY, fail)
    assert cache.get("sr", KEY) is None
    assert list(cache.folder("sr", KEY).parent.iterdir()) == []


def test_full_disk_is_one_clear_line_and_leaves_nothing(cache, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QartsrError, match="the disk is full") as caught:
        cache.put("sr", KEY, writer("one"))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert cache.get("sr", KEY) is None
    assert cache.put("sr", KEY, writer("one")).is_dir()


def test_concurrent_writers_end_with_one_whole_entry(cache):
    together = threading.Barrier(8)

    def fill(folder):
        (folder / "value.txt").write_text("same")
        together.wait(timeout=20)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: cache.put("sr", KEY, fill), range(8)))
    assert len(set(folders)) == 1
    assert cache.get("sr", KEY)
    assert [path.name for path in folders[0].parent.iterdir()] == [KEY]


def test_unfinished_generation_is_continued(cache):
    assert cache.begin(NAMES, NAMES) is False
    cache.put("sr", KEY, writer("one"))
    assert cache.begin(NAMES, NAMES) is True
    assert cache.get("sr", KEY)


def test_finished_generation_is_removed(cache):
    cache.begin(["00"], NAMES)
    cache.put("sr", KEY, writer("one"))
    cache.finish("00")
    assert cache.get("sr", KEY), "notebooks run alone may still use it"
    assert cache.begin(["00"], NAMES) is False
    assert cache.get("sr", KEY) is None
    assert {path.name for path in cache.root.parent.iterdir()} == {"tiny", ".tiny.left"}


def test_a_killed_removal_is_gone_on_with(cache, monkeypatch):
    cache.begin(["00"], NAMES)
    for key in (KEY, stable_hash("other")):
        cache.put("sr", key, writer("one"))
    cache.finish("00")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        cache.begin(["00"], NAMES)
    assert cache.root.is_dir()
    assert cache.begin(["00"], NAMES) is False
    assert list(cache.root.iterdir()) == []


def test_second_runner_is_refused(cache):
    with cache.lock(), pytest.raises(QartsrError, match="another `make reproduce PROFILE=tiny`"):
        cache.lock()
    with cache.lock():
        pass


def test_some_notebooks_do_not_finish_an_interrupted_run_of_all(cache):
    assert cache.begin(NAMES, NAMES) is False
    cache.put("sr", KEY, writer("hours"))
    cache.finish("00")  # and killed
    for _ in range(2):
        assert cache.begin(["00"], NAMES) is True
        cache.finish("00")
    assert cache.begin(NAMES, NAMES) is True
    assert cache.get("sr", KEY)
    for name in NAMES:
        cache.finish(name)
    assert cache.begin(NAMES, NAMES) is False and cache.get("sr", KEY) is None


def test_some_notebooks_always_compute_after_a_finished_run_and_do_what_is_left(cache):
    cache.begin(NAMES, NAMES)
    cache.put("sr", KEY, writer("one"))
    for name in NAMES:
        cache.finish(name)
    for _ in range(2):
        assert cache.begin(["01"], NAMES) is False
        assert cache.get("sr", KEY) is None
        cache.put("sr", KEY, writer("two"))
        cache.finish("01")
    assert cache.begin(["01", "02"], NAMES) is False
    cache.finish("01")  # 02 failed
    assert cache.begin(["02"], NAMES) is True
    cache.finish("02")
    assert cache.begin(["02"], NAMES) is False


def test_what_was_made_outside_the_runner_waits_for_all_notebooks(cache):
    cache.put("sr", KEY, writer("alone"))
    assert cache.begin(["00"], NAMES) is True
    cache.finish("00")
    assert cache.begin(["01", "02", "gone"], NAMES) is True
    for name in ("01", "02"):
        cache.finish(name)
    assert cache.begin(["01"], NAMES) is True, "a notebook failed"
    cache.finish("01")
    assert cache.begin(["01"], NAMES) is False, "and is no longer there"
