"""The ingredients of the study's method: which models are built, and the table of what each is worth."""

from __future__ import annotations

import pandas as pd
import pytest

from qartsr_lib.backbones import load_backbone
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.base import stored_bits
from qartsr_lib.methods.setting import BEST
from qartsr_lib.show.tables.rates import ingredient_sections
from qartsr_lib.study.experiments import ingredients


def test_every_variant_is_another_model_that_the_methods_know(monkeypatch):
    seen = {}
    monkeypatch.setattr(ingredients, "run_trials", lambda tried, *_: seen.update(tried))
    monkeypatch.setattr(ingredients, "BITS", ("W2A2",))
    ingredients.run_ingredients(None)
    assert len(set(seen.values())) == len(seen) == len(ingredients.BACKBONES) * len(ingredients.VARIANTS)
    for trial in seen.values():
        METHODS.get(trial.method).check_options(dict(trial.options))
    last = seen["embedded-scaled", "W2A2", list(ingredients.VARIANTS)[-1]]
    assert (last.method, last.options) == ("groupwise-untrained", BEST.options), "what profiles compare"


def test_stored_bits_are_known_before_anything_is_built():
    model, method = load_backbone("embedded-scaled", 1), METHODS.get("groupwise-untrained")
    whole = stored_bits(method, model, "W2A2", BEST)
    assert whole == pytest.approx(2.82, abs=0.005)  # of the committed rows
    assert whole < stored_bits(method, model, "W4A4", BEST)


def test_gains_are_paired_by_photograph():
    variants = list(ingredients.VARIANTS)
    rows = [
        ("m", "W2A2", name, image, 20 + place + 10 * k, 2.5 + place)
        for k, image in enumerate("abcdefgh")
        for place, name in reversed(list(enumerate(variants)))
    ]
    columns = ["backbone", "bits", "variant", "image", "psnr_fp", "stored_bits"]
    ((title, table),) = ingredient_sections(pd.DataFrame(rows, columns=columns))
    assert title == "m, W2A2"
    assert table["variant"].tolist() == variants
    assert table.iloc[0].tolist()[1:] == ["55.00", "", "2.50"]
    assert table.iloc[2].tolist()[1:] == ["57.00", "+2.00 [2.00, 2.00]", "4.50"]
