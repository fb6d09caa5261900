"""Learning-rate tries: what counts as a breakdown of training, and what is a mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.images.image import write_png
from qartsr_lib.study.experiments import tries


@pytest.fixture
def raising(home, monkeypatch):
    """A small data root, and a function that makes every training raise; returns the rows of one try."""
    for name in ("train", "val"):
        write_png(home / f"BSDS500/{name}/a.png", torch.rand(1, 3, 160, 160))
    monkeypatch.setattr(tries, "pretrained_distance", lambda device: None)

    def run(error):
        def build(*_, **__):
            raise error

        monkeypatch.setattr(type(tries.METHODS.get("lsq")), "build", build)
        return tries.run_tries([("lsq", "W4A4", 1)], 1, home)

    return run


def test_a_diverged_training_is_a_result(raising):
    assert np.isnan(raising(Diverged("loss is not finite")).frame["psnr_fp"].iloc[0])


def test_a_mistake_is_none(raising):
    with pytest.raises(QartsrError, match="the disk is full"):
        raising(QartsrError("x.pt: the disk is full"))


@pytest.mark.parametrize(("name", "words"), [("qartrs", "did you mean 'qartsr'"), ("maxmin", "does not train")])
def test_methods_are_checked_first(home, monkeypatch, capsys, name, words):
    monkeypatch.setattr(tries, "run_tries", lambda *_: pytest.fail("tried"))
    assert tries.main(["--data-root", str(home), "--methods", name]) == 2
    assert words in capsys.readouterr().err
