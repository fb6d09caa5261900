"""Shared fixtures: a home of one's own for everything written, and the optional shared data."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("MPLBACKEND", "agg")

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """QARTSR_HOME in a temporary folder: results, cache and build of the checkout stay untouched."""
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    monkeypatch.delenv("DATA_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def threads():
    """`with threads(n):` computes on n threads; afterwards as many as before."""

    @contextmanager
    def use(count):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return use


@pytest.fixture
def metrics_forgotten():
    """No metric is loaded before or after."""
    from qartsr_lib.images import metrics

    metrics.forget()
    yield
    metrics.forget()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark data beside the checkout (or QARTSR_SHARED); skips where it is absent."""
    folder = Path(os.environ.get("QARTSR_SHARED") or CHECKOUT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip("no shared data folder")
    return folder
