"""The same learning-rate tries for every trained method, judged on BSDS500/val; no test set is looked at.

Under setting DEFAULT each method is trained with each of FIRST_LOOK on its own published rates, then with SECOND_LOOK
around each winner; under BEST, whose networks start nearer to full precision, with OTHER_SETTING on those winners. The
tries are results/study/tries.csv; the winners, one for each setting and bit width, are methods/rates.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import CHOSEN, OTHERS, Options, chosen_rate, log_distance, training_options
from qartsr_lib.methods.setting import BEST, DEFAULT
from qartsr_lib.study.experiments.trials import Trial, run_trials
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.results import read_measurement

#: Factors on a method's published rates that every method is tried with.
FIRST_LOOK = (1, 10, 100, 1000)
#: Times the winner of the first look: half a decade down and up.
SECOND_LOOK = (0.3, 3)
#: Under BEST, times the winner of all bit widths under DEFAULT; where a method has none, the rate that LIKE won with.
OTHER_SETTING, LIKE = (0.03, 0.1, 0.3, 1), "qartsr"
BITS = ("W4A4", "W2A2")
KEY = ("method", "bits", "setting", "factor")
#: How far one training can be trusted: the rates chosen under BEST, from each of these seeds.
SPREAD_METHODS, SPREAD_SEEDS, SPREAD_KEY = ("qartsr", "lsq-qat"), (0, 1, 2), ("method", "bits", "seed")
LOOKS = ("first", "second", "other setting")
SETTINGS = {setting.label: setting for setting in (DEFAULT, BEST)}

#: Name of a trained method, bits, Setting.label, factor on its published rates.
Try = tuple[str, str, str, float]


def run_look(data_root: Path, methods: Sequence[str] | None = None, look: str = "first") -> pd.DataFrame:
    """Run all tries of a look, write each, and the winners over all looks; returns all of results/study/tries.csv.

    Args:
        data_root: folder that holds BSDS500/train (calibration) and BSDS500/val.
        methods: None for all trained ones; rows and rates of the others stay.
        look: one of LOOKS; "second" goes around the first's winners, which have to be there.
    """
    methods = methods or trained_methods()
    if look not in LOOKS:
        raise QartsrError(f"look {look!r}: choose {', '.join(map(repr, LOOKS))}")
    for name in methods:
        if not METHODS.get(name).trains:
            raise QartsrError(f"method {name!r} does not train; choose from {', '.join(trained_methods())}")
    if look == "first":
        cells: list[Try] = list(product(methods, BITS, (DEFAULT.label,), FIRST_LOOK))
    elif look == "second":
        cells = second_look(methods, read_measurement("study", "tries"))
    else:
        cells = other_setting(methods)
    for cell in cells:  # each is written at once: hours of them may be interrupted
        run_tries([cell], data_root).write("tries", by=("dataset", *KEY))
    tries = read_measurement("study", "tries")
    write_text(CHOSEN, json.dumps(choose(tries), indent=1, sort_keys=True) + "\n")
    return tries


def run_spread(data_root: Path) -> pd.DataFrame:
    """Train SPREAD_METHODS from each of SPREAD_SEEDS, write each result; returns all of results/study/spread.csv."""
    study = replace(get_profile("study"), setting=BEST.options)
    for method, bits, seed in product(SPREAD_METHODS, BITS, SPREAD_SEEDS):
        options = (*training_options(method, bits, study), ("seed", seed))
        run = run_trials({(method, bits, seed): Trial(method, bits, options)}, SPREAD_KEY, data_root, "spread")
        run.write("spread", by=("dataset", *SPREAD_KEY))
    return read_measurement("study", "spread")


def trained_methods() -> list[str]:
    """Names of all registered methods that train."""
    return [name for name in METHODS if METHODS.get(name).trains]


def second_look(methods: Sequence[str], tries: pd.DataFrame) -> list[Try]:
    """Around what every method won with in the first look, which is among `tries`."""
    winners = choose(tries[tries["factor"].isin(FIRST_LOOK)]).get(DEFAULT.label, {})
    absent = [method for method in methods if method not in winners]
    if absent:
        raise QartsrError(f"look 'second': no first look at {', '.join(absent)} in tries.csv; run look 'first'")
    around = product(methods, BITS, SECOND_LOOK)
    return [(method, bits, DEFAULT.label, round(share * winners[method][bits], 3)) for method, bits, share in around]


def other_setting(methods: Sequence[str]) -> list[Try]:
    """Under BEST, at and below what every method won with under DEFAULT."""
    tried = json.loads(CHOSEN.read_text(encoding="utf-8")).get(DEFAULT.label, {})

    def winner(name: str, bits: str) -> float:
        return chosen_rate(name, bits) if name in tried else _factor_like(LIKE, name)

    cells = product(methods, BITS, OTHER_SETTING)
    return [(name, bits, BEST.label, round(share * winner(name, bits), 3)) for name, bits, share in cells]


def _factor_like(tried: str, name: str) -> float:
    """The factor by which the largest published rate of method `name` is what `tried` was found to do best with."""
    largest = {method: max(rate for _, rate in METHODS.get(method).rates) for method in (tried, name)}
    return round(chosen_rate(tried, OTHERS) * largest[tried] / largest[name], 3)


def run_tries(cells: Sequence[Try], data_root: Path) -> Measured:
    """Rows dataset, KEY, image and what `trials.run_trials` measures; see `run_look`."""
    study = get_profile("study")

    def options(method: str, bits: str, setting: str, factor: float) -> Options:
        profile = replace(study, setting=SETTINGS[setting].options)
        return tuple((dict(training_options(method, bits, profile)) | {"rate": float(factor)}).items())

    tried = {cell: Trial(*cell[:2], options(*cell)) for cell in cells}
    return run_trials(tried, KEY, data_root, "tries")


def choose(tries: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Setting -> method -> bits (and OTHERS: all together) -> factor with the smallest error times perceptual distance.

    Both are relative to full precision and geometric means over images. A try that broke down loses.
    """
    chosen: dict[str, dict[str, dict[str, float]]] = {}
    for (setting, method), values in criterion(tries).groupby(level=["setting", "method"], sort=False):
        by_bits = values.droplevel(["method", "setting"]).unstack("bits")
        factors = {bits: float(by_bits[bits].idxmin()) for bits in by_bits}
        factors[OTHERS] = float(by_bits.dropna().mean(axis=1).idxmin())  # of what was tried at all bit widths
        chosen.setdefault(setting, {})[method] = factors
    return chosen


def criterion(tries: pd.DataFrame) -> pd.Series:
    """KEY -> log of squared error times perceptual distance, mean over images; inf if broken."""
    error = log_distance(tries["psnr_fp"].astype(float), tries["feature_distance"].astype(float))
    return tries.assign(value=error.fillna(np.inf)).groupby(list(KEY), sort=False)["value"].mean()
