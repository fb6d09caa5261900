"""Environment variables set for a while."""

import os

import pytest

from qartsr_lib.base.machine import environment_variables


def test_all_are_as_they_were(monkeypatch):
    monkeypatch.setenv("QARTSR_A", "before")
    monkeypatch.delenv("QARTSR_B", raising=False)
    monkeypatch.delenv("QARTSR_C", raising=False)
    with pytest.raises(RuntimeError), environment_variables({"QARTSR_A": "1", "QARTSR_B": "2"}, ["QARTSR_C"]):
        assert (os.environ["QARTSR_A"], os.environ["QARTSR_B"]) == ("1", "2")
        os.environ["QARTSR_C"] = "left behind"
        raise RuntimeError
    assert os.environ["QARTSR_A"] == "before"
    assert "QARTSR_B" not in os.environ and "QARTSR_C" not in os.environ
