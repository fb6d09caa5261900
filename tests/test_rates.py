"""Learning-rate tries: what counts as a breakdown of training, and what is a mistake."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.images.image import write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods import rates as chosen_rates
from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import BEST, DEFAULT, Setting
from qartsr_lib.show import tables as reports
from qartsr_lib.study.experiments import rates, trials
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.profiles import get_profile


@pytest.fixture
def raising(home, monkeypatch):
    """A small data root, and a function that makes every training raise; returns the rows of one try."""
    for name in ("train", "val"):
        write_png(home / f"BSDS500/{name}/a.png", torch.rand(1, 3, 160, 160))
    monkeypatch.setattr(trials, "pretrained_distance", lambda device: None)

    def run(error):
        def build(*_, **__):
            raise error

        monkeypatch.setattr(type(rates.METHODS.get("lsq")), "build", build)
        return rates.run_tries([("lsq", "W4A4", rates.DEFAULT.label, 1)], home)

    return run


def test_a_diverged_training_is_a_result(raising):
    assert np.isnan(raising(Diverged("loss is not finite")).table["psnr_fp"].iloc[0])


def test_a_mistake_is_none(raising):
    with pytest.raises(QartsrError, match="the disk is full"):
        raising(QartsrError("x.pt: the disk is full"))


@pytest.mark.parametrize(("name", "words"), [("qartrs", "did you mean 'qartsr'"), ("maxmin", "does not train")])
def test_methods_are_checked_first(home, monkeypatch, name, words):
    monkeypatch.setattr(rates, "run_tries", lambda *_: pytest.fail("tried"))
    with pytest.raises(QartsrError, match=words):
        rates.run_look(home, methods=[name])


def test_a_look_needs_the_one_before_it(home):
    with pytest.raises(QartsrError, match="look 'third'"):
        rates.run_look(home, look="third")
    with pytest.raises(QartsrError, match="tries.csv"):
        rates.run_look(home, look="second")


def test_a_look_writes_tries_and_winners_and_keeps_other_methods(home, monkeypatch):
    monkeypatch.setattr(rates, "CHOSEN", home / "rates.json")
    monkeypatch.setattr(chosen_rates, "CHOSEN", home / "rates.json")

    def tried(cells, root):
        rows = [("d", *cell, "x", 20.0 + (cell[3] == 10), 0.1) for cell in cells]
        columns = ["dataset", *rates.KEY, "image", "psnr_fp", "feature_distance"]
        return Measured("study", pd.DataFrame(rows, columns=columns).assign(run_id="r"), ())

    monkeypatch.setattr(rates, "run_tries", tried)
    rates.run_look(home, methods=["lsq"])
    rows = rates.run_look(home, methods=["qartsr"], look="first")
    assert set(rows["method"]) == {"lsq", "qartsr"} and len(rows) == 2 * len(rates.BITS) * len(rates.FIRST_LOOK)
    assert len(rates.run_look(home, methods=["lsq"], look="second")) == len(rows) + len(rates.BITS) * 2
    wanted = {"W4A4": 10.0, "W2A2": 10.0, "others": 10.0}
    chosen = {rates.DEFAULT.label: {"lsq": wanted, "qartsr": wanted}}
    assert json.loads((home / "rates.json").read_text()) == chosen
    rates.run_look(home, methods=["lsq"], look="other setting")
    other = {"W4A4": 10.0, "W2A2": 10.0, "others": 10.0}
    assert json.loads((home / "rates.json").read_text()) == chosen | {rates.BEST.label: {"lsq": other}}


def test_a_rate_chosen_under_a_setting_serves_it_alone_and_others_take_the_defaults(home, monkeypatch):
    (home / "rates.json").write_text(
        json.dumps(
            {
                DEFAULT.label: {"lsq": {"W4A4": 30, "others": 10}, "qartsr": {"others": 300}},
                BEST.label: {"lsq": {"W4A4": 3, "others": 1}},
            }
        )
    )
    monkeypatch.setattr(chosen_rates, "CHOSEN", home / "rates.json")
    monkeypatch.setattr(rates, "CHOSEN", home / "rates.json")
    found = [chosen_rates.chosen_rate("lsq", "W4A4", setting) for setting in (DEFAULT, BEST, Setting("first-last"))]
    assert found == [30, 3, 30] and chosen_rates.chosen_rate("lsq", "W3A3", BEST) == 1
    assert chosen_rates.chosen_rate("lsq", "w4a4", BEST) == 3, "bits are the same in small letters"
    study = get_profile("study")
    for setting, rate in ((DEFAULT, 30), (BEST, 3)):
        assert dict(training_options("lsq", "W4A4", replace(study, setting=setting.options)))["rate"] == rate
    winners = {"W4A4": 30, "W2A2": 10}  # each width's own, so that no edge of what is tried lies below it
    around = [(width, round(share * winners[width], 3)) for width in rates.BITS for share in rates.OTHER_SETTING]
    assert rates.other_setting(["lsq"]) == [("lsq", width, BEST.label, factor) for width, factor in around]
    for name in ("q-dm", "quantvsr", "qartsr-halves"):  # not tried: at QArtSR's rate, 300 times 1e-5, and below
        largest = max(rate for _, rate in METHODS.get(name).rates)
        tried = sorted({factor * largest for *_, factor in rates.other_setting([name])})
        assert tried == pytest.approx([3e-3 * share for share in rates.OTHER_SETTING], rel=0.01), name


def test_a_share_of_the_budget_without_an_image_is_told():
    assert dict(training_options("lsq", "W4A4", get_profile("smoke", train_images=2), 0.5))["images"] == 1
    with pytest.raises(QartsrError, match="train_images is 1, and 0.5 of it is no image; choose more"):
        training_options("lsq", "W4A4", get_profile("smoke", train_images=1), 0.5)


def test_the_spread_of_seeds_is_of_the_chosen_rates(home, monkeypatch):
    ran = []

    def run(tried, key, root, name):
        ran.extend(tried.items())
        ((method, bits, seed),) = tried
        row = {"dataset": "d", "method": method, "bits": bits, "seed": seed, "psnr_fp": 40.0 + seed, "run_id": "r"}
        return Measured("study", pd.DataFrame([row]), [])

    monkeypatch.setattr(rates, "run_trials", run)
    monkeypatch.setattr(rates, "SPREAD_METHODS", ("lsq-qat",))
    rows = rates.run_spread(home)
    assert [cell for cell, _ in ran] == [("lsq-qat", bits, seed) for bits in rates.BITS for seed in (0, 1, 2)]
    for (method, bits, seed), trial in ran:
        options = dict(trial.options)
        assert options["seed"] == seed and options["rate"] == chosen_rates.chosen_rate(method, bits, BEST)
        assert (options["images"], options["eight_bit"]) == (256, BEST.eight_bit)
    ((_, table),) = reports.spread_sections(rows)
    assert table.iloc[0].tolist() == ["LSQ [QAT]", "W4A4", "40.00", "41.00", "42.00", "2.00"] and len(table) == 2
