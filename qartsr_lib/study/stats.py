"""Bootstrap intervals over images, and p-values corrected for their number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

N_RESAMPLES = 5000
SMALL, FEW_NOTE = 10, "interval over fewer than ten photographs"


def few_note(n: int) -> str:
    """How an interval over `n` photographs must be marked: fewer than ten say little; "" for more."""
    return FEW_NOTE if n < SMALL else ""


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean and its 95% confidence interval of independent values (1-D), one per photograph; NaN are left out.

    Values that share a photograph (seeds, crops) are not independent: average them per photograph first.

    Source: BCa bootstrap, Efron 1987, as in scipy.stats.bootstrap, with 5000 resamples of a fixed seed. Where BCa is
    undefined (its acceleration divides by zero for some nearly constant data) the percentile interval takes its
    place; equal values give an interval of zero width, fewer than two none (NaN).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected a 1-D array of values, got shape {values.shape}")
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values[0]) if len(values) else float("nan"), float("nan"), float("nan")
    low = high = float(values[0])
    for method in ("BCa", "percentile") if np.ptp(values) else ():
        low, high = _interval(values, method)
        if np.isfinite(low) and np.isfinite(high):
            break
    return float(values.mean()), low, high


def _interval(values: np.ndarray, method: str) -> tuple[float, float]:
    settings = {"n_resamples": N_RESAMPLES, "vectorized": True, "rng": np.random.default_rng(0)}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)  # answered by the fallback
        low, high = scipy.stats.bootstrap((values,), np.mean, method=method, **settings).confidence_interval
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); NaN stays and does not count."""
    values = np.array(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    values[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return values.tolist()
