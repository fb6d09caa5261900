"""Where intermediate results are kept: limits, bits, full disk."""

import pytest
import torch

from qartsr_lib.backbones.steps import Flow
from qartsr_lib.training.finetuning.flows import FlowStore, free_memory

SIZE = 4 * (2 * 3 + 5)  # bytes of one flow


def flow(number: int) -> Flow:
    x = torch.full((1, 2, 1, 3), float(number)).contiguous(memory_format=torch.channels_last)
    return Flow(x, skips=(torch.full((5,), number + 0.1),))


def same(one: Flow, other: Flow) -> bool:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_memory_first_then_files_then_nothing(tmp_path):
    store = FlowStore(2 * SIZE, 1 * SIZE, tmp_path)
    assert [store.put(number, flow(number)) for number in range(4)] == [True, True, True, False]
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    for number in range(3):
        assert number in store and same(store.get(number), flow(number))
    assert 3 not in store
    with pytest.raises(KeyError):
        store.get(3)


def test_dropping_makes_room_again(tmp_path):
    store = FlowStore(SIZE, SIZE, tmp_path)
    store.put("memory", flow(1)), store.put("file", flow(2))
    for key in ("file", "memory", "never there"):
        store.drop(key)
    assert not list(tmp_path.rglob("*.pt")) and "memory" not in store
    assert store.put("a", flow(3)) and store.put("b", flow(4)) and not store.put("c", flow(5))


def test_files_go_with_the_store(tmp_path):
    store = FlowStore(0, SIZE, tmp_path)
    store.put(0, flow(0))
    assert list(tmp_path.iterdir())
    del store
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_keeping_and_nothing_else(tmp_path, monkeypatch, capsys):
    store = FlowStore(0, 10 * SIZE, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qartsr_lib.training.finetuning.flows.torch.save", full)
    assert not store.put(0, flow(0)) and not store.put(1, flow(1))
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert not list(tmp_path.rglob("*.pt"))


def test_limits_are_shares_of_what_is_free():
    store, free = FlowStore(), free_memory()
    assert 2**20 < store.memory_left < 0.75 * free and store.files_left > 0
