"""Which learning rate won: the criterion on the tries, without a line of training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qartsr_lib.methods.rates import OTHERS

#: Factors on a method's published rates that every method is tried with.
FIRST_LOOK = (1, 10, 100, 1000)


def choose(tries: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Method -> bits (and OTHERS: all together) -> factor with the smallest error times perceptual distance.

    Both are relative to full precision and geometric means over images; in a sum such as Eq. (8)'s the
    perceptual distance would decide alone. A try that broke down loses.
    """
    chosen = {}
    for method, values in criterion(tries).groupby(level="method", sort=False):
        by_bits = values.droplevel("method").unstack("bits")
        chosen[method] = {bits: float(by_bits[bits].idxmin()) for bits in by_bits}
        chosen[method][OTHERS] = float(by_bits.dropna().mean(axis=1).idxmin())  # of what was tried at all bit widths
    return chosen


def criterion(tries: pd.DataFrame) -> pd.Series:
    """(method, bits, factor) -> log of squared error times perceptual distance, mean over images; inf if broken."""
    error = -np.log(10) / 10 * tries["psnr_fp"].astype(float) + np.log(tries["feature_distance"].astype(float))
    return tries.assign(value=error.fillna(np.inf)).groupby(["method", "bits", "factor"], sort=False)["value"].mean()
