"""What one row is worth against another: differences paired over images, with intervals and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.study.evaluator import FULL_PRECISION
from qartsr_lib.study.experiments import grids
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL, NO_MODEL, NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.results import KEYS
from qartsr_lib.study.stats import few_note, mean_interval

NOT_QUANTIZED = FULL_PRECISION[1]


@dataclass(frozen=True)
class Row:
    """One row of a table, as a pair of `paired_differences` names it."""

    method: str  # name in the table. FP, bicubic and outside systems are taken at W32A32 whatever the bit width.
    bits: str | None = None  # such as "W4A4"; None for every bit width in turn
    timestep: int | None = None  # T; None for every T in turn


Pairs = Sequence[tuple[Row, Row]]


def _across(methods: Sequence[str]) -> Pairs:
    return [(Row(method, timestep=1), Row(method, timestep=1000)) for method in methods]


def _against(method: str, others: Sequence[str]) -> Pairs:
    return [(Row(method), Row(other)) for other in others]


_BASE, _BOTH = grids.BASELINE.label, grids.BOTH.label
_RPQ, _ET, _RPQ_HALF, _ET_HALF = grids.RPQ.label, grids.ET.label, grids.RPQ_HALF.label, grids.ET_HALF.label
#: Table 4: title -> pairs. The paper's ET adds steps to RPQ*, so its gain is over half the budget.
TABLE4_EFFECTS: dict[str, Pairs] = {
    "TRQ: T = 1 minus T = 1000": _across(["FP", _BASE, _RPQ_HALF, _RPQ]),
    "The paper's steps: ET adds to the budget": [
        *_against(_RPQ_HALF, [_BASE]),
        *_against(_ET_HALF, [_BASE]),
        *_against(_BOTH, [_RPQ_HALF, _ET_HALF, _BASE]),
    ],
    "Equal steps": [
        *_against(_RPQ, [_BASE]),
        *_against(_ET, [_BASE]),
        *_against(_BOTH, [_RPQ, _ET, _BASE, "FP"]),
    ],
    "Variants, equal steps": _against(_BOTH, [row.label for row in grids.VARIANTS]),
}


def table3_effects(methods: Sequence[str], outside: Sequence[str] = (), ours: str = "QArtSR") -> dict[str, Pairs]:
    """Pairs of Table 3, title -> pairs: `ours` against full precision, bicubic, other methods and outside systems.

    Args:
        methods: names in the table.
        outside: names of outside systems.
        ours: the method that is compared.
    """
    rivals = [method for method in methods if method != ours]
    return {
        "The same model": _against(ours, ["FP", BICUBIC_LABEL, *rivals, *outside]),
        "The paper's setting: T = 1 minus rivals at T = 1000": [
            (Row(ours, timestep=1), Row(rival, timestep=1000)) for rival in ["FP", *rivals]
        ],
    }


def budget_effects(methods: Sequence[str], factors: Sequence[int]) -> dict[str, Pairs]:
    """Pairs of `grids.budget_grid`, title -> pairs.

    Args:
        methods: registered names of trained methods.
        factors: of the budget.
    """
    longer = [(grids.budget_label(method, 1), grids.budget_label(method, n)) for method in methods for n in factors]
    plain = [Row(grids.budget_label(method, 1)) for method in methods]
    return {
        "What a longer training gains": [(Row(long), Row(short)) for short, long in longer],
        "Distance to full precision": [(row, Row("FP")) for row in [*plain, *(Row(long) for _, long in longer)]],
    }


def image_means(rows: pd.DataFrame) -> pd.Series:
    """Value per image, means over seeds; infinite values count as none."""
    return rows["value"].astype(float).replace([np.inf, -np.inf], np.nan).groupby(rows["image"]).mean()


def paired(plus: Sequence[pd.Series], minus: Sequence[pd.Series]) -> pd.Series:
    """Sum of `plus` minus sum of `minus` (`image_means`) per image, without images that one of them lacks."""
    return (sum(plus) - sum(minus)).dropna()


def paired_differences(per_image: pd.DataFrame, pairs: Pairs, metric: str = "PSNR") -> pd.DataFrame:
    """`metric` of the first row minus the second, paired over images (means over seeds), with 95% intervals.

    Args:
        per_image: `Measured.per_image`; both rows of a pair are of one backbone, or the second of an outside
            system or bicubic.
        pairs: each is resolved for every data set, backbone, bit width and T; a pair with an absent row is left out.
        metric: name in METRICS.

    Returns:
        Columns dataset, backbone, bits, T, difference, `metric`, ci_low, ci_high, n_images, verdict
        ("helps", "hurts", "undecided" where the interval holds zero or there is none, "no value") and
        note (few images). bits and T read "a - b" where the rows differ in them.
    """
    scored = per_image[per_image["metric"] == metric]
    values = {key: image_means(rows) for key, rows in scored.groupby(list(KEYS), sort=False)}
    lines: dict[tuple, tuple] = {}
    for model in dict.fromkeys(key[:2] for key in values if key[1] not in NO_MODEL):
        settings = dict.fromkeys((timestep, bits) for *own, timestep, _, bits in values if tuple(own) == model)
        for pair in pairs:
            for setting in settings:
                found = tuple(_find(values, row, *model, *setting) for row in pair)
                if None not in found and found not in lines:
                    lines[found] = _line(found, values, metric)
    columns = ["dataset", "backbone", "bits", "T", "difference", metric, "ci_low", "ci_high"]
    columns += ["n_images", "verdict", "note"]
    table = pd.DataFrame(list(lines.values()), columns=columns)
    return table.assign(**{name: table[name].astype(float).round(3) for name in (metric, "ci_low", "ci_high")})


def difference_sections(
    per_image: pd.DataFrame, effects: Mapping[str, Pairs], metric: str = "PSNR"
) -> list[tuple[str, pd.DataFrame]]:
    """[(title, `paired_differences`)] of every entry of `effects` that has at least one pair."""
    sections = [(title, paired_differences(per_image, pairs, metric)) for title, pairs in effects.items()]
    return [(title, table) for title, table in sections if len(table)]


Key = tuple[str, str, int, str, str]  # values of KEYS


def _find(values: dict[Key, pd.Series], row: Row, dataset: str, backbone: str, timestep: int, bits: str) -> Key | None:
    timestep = timestep if row.timestep is None else row.timestep
    candidates = [(dataset, backbone, timestep, row.method, row.bits or bits)]
    if row.bits is None:
        models = [(backbone, timestep), (OUTSIDE, NO_TIMESTEP), (BICUBIC, 1)]
        candidates += [(dataset, *model, row.method, NOT_QUANTIZED) for model in models]
    return next((key for key in candidates if key in values), None)


def _line(found: Sequence[Key], values: dict[Key, pd.Series], metric: str) -> tuple:
    difference = paired(*([values[key]] for key in found))
    mean, low, high = mean_interval(difference)
    (dataset, backbone, *first), (_, other, *second) = found
    timestep, method, bits = (
        str(a) if a == b or other in NO_MODEL else f"{a} - {b}" for a, b in zip(first, second, strict=True)
    )
    method = f"{first[1]} - {second[1]}"
    n, verdict = len(difference), _verdict(mean, low, high, metric)
    return (dataset, backbone, bits, timestep, method, mean, low, high, n, verdict, few_note(n))


def _verdict(mean: float, low: float, high: float, metric: str) -> str:
    if math.isnan(mean):
        return "no value"
    if not (low > 0 or high < 0):
        return "undecided"
    return "helps" if (mean > 0) != lower_is_better(metric) else "hurts"
