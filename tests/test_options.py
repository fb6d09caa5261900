"""Threads and devices on the command lines that measure and train: one line for what cannot be."""

import pytest
import torch

from qartsr_lib.training.command import embedded
from tests.benchmarks import fullsize, fullsize_deployment, fullsize_training

COMMANDS = {
    "fullsize": (fullsize.main, []),
    "fullsize_training": (fullsize_training.main, []),
    "fullsize_deployment": (fullsize_deployment.main, []),
    "training": (embedded, ["--out", "absent", "--images", "absent"]),
}


@pytest.mark.parametrize("number", ["-1", "0", "two"])
@pytest.mark.parametrize("command", ["fullsize", "fullsize_training", "training"])
def test_threads_are_at_least_one(home, command, number, capsys):
    main, words = COMMANDS[command]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--threads", number])
    assert ended.value.code == 2
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert f"--threads: {number}: choose a whole number of at least 1" in last


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
@pytest.mark.parametrize("command", ["fullsize_training", "fullsize_deployment", "training"])
def test_a_device_that_is_not_there(home, command, device, capsys, monkeypatch):
    main, words = COMMANDS[command]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main([*words, "--device", device]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and device in line
