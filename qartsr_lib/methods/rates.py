"""The factor on each trained method's published learning rates: the same tries for all, chosen on BSDS500/val."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS
from qartsr_lib.methods.setting import DEFAULT, Setting
from qartsr_lib.methods.trained import Budget

#: Written by the learning-rate tries: Setting.label -> method -> bits -> factor.
CHOSEN = Path(__file__).with_name("rates.json")
Options = tuple[tuple[str, object], ...]
#: Bit widths that were not tried themselves: the best factor over those that were.
OTHERS = "others"


def chosen_rate(method: str, bits: str, setting: Setting = DEFAULT) -> float:
    """Factor for `method` at `bits`: chosen under `setting`, else under DEFAULT; 1 for a method not tried."""
    chosen = json.loads(CHOSEN.read_text(encoding="utf-8"))
    tried = (chosen.get(label, {}).get(method) for label in (setting.label, DEFAULT.label))
    factors = next(filter(None, tried), {})
    return float(factors.get(bits.upper(), factors.get(OTHERS, 1.0)))


def log_distance(psnr, distance):
    """Log of squared error (by its PSNR in dB) times a perceptual distance, of numbers or columns: what rates minimize.

    In a sum such as Eq. (8)'s the perceptual distance would decide alone.
    """
    return np.log(distance) - np.log(10) / 10 * psnr


def training_options(method: str, bits: str, profile, share: float = 1.0) -> Options:
    """Options of `method` by a study.profiles.Profile: its Setting, and the Budget of a trained one.

    The budget is `share` of the profile's images; a QartsrError where that is none, or an option has an unknown value.
    """
    setting, images = Setting(**dict(profile.setting)), round(share * profile.train_images)
    trains = METHODS.get(method).trains
    if trains and images < 1:
        raise QartsrError(f"train_images is {profile.train_images}, and {share:g} of it is no image; choose more")
    rate = 1.0 if profile.published_rates else chosen_rate(method, bits, setting)
    budget = Budget(max(images, 1), profile.train_batch, rate, profile.image_loss, profile.teacher)
    return (*vars(budget).items(), *profile.setting) if trains else profile.setting
