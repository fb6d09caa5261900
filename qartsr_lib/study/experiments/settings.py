"""Notebook 13: the settings that all methods share, tried out on BSDS500/val; no test set is looked at.

Every list of 8-bit layers with every range rule and real zero-points, and rounded zero-points at both ends of that; for
one method without training, the finest quantizer without training, and QArtSR.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import BEST, DEFAULT, EIGHT_BIT_LISTS, Setting
from qartsr_lib.study.experiments.trials import BACKBONE, Trial, run_trials
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.profiles import get_profile

METHODS, BITS, RANGES = ("maxmin", "svdquant-released", "qartsr"), ("W4A4", "W2A2"), ("min-max", "least-squares")
DYNAMIC = ("svdquant-released",)  # ranges come from the values, and there are no zero-points: lists alone
JUDGE = "qartsr"  # the method that the best setting is chosen for, as the paper would have chosen it
FACTORS = ("eight_bit", "ranges", "zero_point")
KEY = ("backbone", "method", "bits", *FACTORS, "images")


def all_settings() -> list[Setting]:
    """Those that are tried: all lists and range rules, and rounded zero-points for DEFAULT and identity path."""
    settings = [Setting(name, rule) for name, rule in product(EIGHT_BIT_LISTS, RANGES)]
    ends = (DEFAULT, BEST)
    return settings + [replace(setting, zero_point="integer") for setting in ends]


def run_settings(data_root: Path) -> Measured:
    """Rows dataset, KEY, image and what `trials.run_trials` measures, of METHODS at BITS under `all_settings`.

    The rates of a trained method are those chosen under each setting, else under DEFAULT.
    """
    study, tried = get_profile("study"), {}
    for method, width, setting in product(METHODS, BITS, all_settings()):
        if method in DYNAMIC and setting != Setting(setting.eight_bit):
            continue
        options = training_options(method, width, replace(study, setting=setting.options))
        cell = (BACKBONE, method, width, *vars(setting).values(), study.train_images)
        tried[cell] = Trial(method, width, options)
    return run_trials(tried, KEY, data_root, "settings")


def means(rows: pd.DataFrame, value: str = "psnr_fp") -> pd.DataFrame:
    """Mean of `value` over photographs: a line per setting, a column per method and bit width; the best line last.

    The order is by the mean of JUDGE's columns; settings that lack one of them come first.
    """
    table = rows.pivot_table(value, list(FACTORS), ["method", "bits"], "mean", sort=False)
    judged = table[JUDGE].mean(axis=1, skipna=False)
    return table.loc[judged.sort_values(na_position="first").index]


def best(rows: pd.DataFrame) -> Setting:
    """The setting under which JUDGE has the highest PSNR to full precision: the last of `means`."""
    return Setting(*means(rows).index[-1])
