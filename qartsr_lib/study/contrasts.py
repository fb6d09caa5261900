"""What one row is worth against another: differences paired over images, with intervals and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.study.aggregate import FEW_NOTE
from qartsr_lib.study.experiment import FULL_PRECISION
from qartsr_lib.study.experiments import finetuned as grids
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL, NO_MODEL, NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.stats import is_small, paired_bootstrap

NOT_QUANTIZED = FULL_PRECISION[1]


@dataclass(frozen=True)
class Row:
    """One row of a table, as a pair of `paired_differences` names it.

    Attributes:
        method: name in the table. FP, bicubic and outside systems are taken at W32A32 whatever the bit width.
        bits: such as "W4A4"; None for every bit width in turn.
        timestep: T; None for every T in turn.
    """

    method: str
    bits: str | None = None
    timestep: int | None = None


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
    """Pairs of `finetuned.budget_grid`, title -> pairs.

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


def paired_differences(per_image: pd.DataFrame, pairs: Pairs, metric: str = "PSNR") -> pd.DataFrame:
    """`metric` of the first row minus the second, paired over images (means over seeds), with 95% intervals.

    Args:
        per_image: `TableRun.per_image`; both rows of a pair are of one backbone, or the second of an outside
            system or bicubic.
        pairs: each is resolved for every data set, backbone, bit width and T; a pair with an absent row is left out.
        metric: name in METRICS.

    Returns:
        Columns dataset, backbone, bits, T, difference, `metric`, ci_low, ci_high, n_images, verdict
        ("helps", "hurts", "undecided" where the interval holds zero or there is none, "no value") and
        note (few images). bits and T read "a - b" where the rows differ in them.
    """
    values = _by_row(per_image, metric)
    cells = list(dict.fromkeys((key[0], key[1]) for key in values if key[1] not in NO_MODEL))
    lines: dict[tuple, tuple] = {}
    for dataset, backbone in cells:
        settings = [key[3:] for key in values if key[:2] == (dataset, backbone)]
        for first, second in pairs:
            for bits, timestep in dict.fromkeys(settings):
                found = tuple(_find(values, row, dataset, backbone, bits, timestep) for row in (first, second))
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


Key = tuple[str, str, str, str, int]


def _by_row(per_image: pd.DataFrame, metric: str) -> dict[Key, pd.Series]:
    """(dataset, backbone, method, bits, T) -> value per image, means over seeds; NaN where there is none."""
    scored = per_image[per_image["metric"] == metric]
    scored = scored.assign(value=scored["value"].astype(float).replace([np.inf, -np.inf], np.nan))
    keys = ["dataset", "backbone", "method", "bits", "timestep"]
    return {key: part.groupby("image")["value"].mean() for key, part in scored.groupby(keys, sort=False)}


def _find(values: dict[Key, pd.Series], row: Row, dataset: str, backbone: str, bits: str, timestep: int) -> Key | None:
    timestep = timestep if row.timestep is None else row.timestep
    candidates = [(dataset, backbone, row.method, row.bits or bits, timestep)]
    if row.bits is None:
        candidates.append((dataset, backbone, row.method, NOT_QUANTIZED, timestep))
        candidates.append((dataset, OUTSIDE, row.method, NOT_QUANTIZED, NO_TIMESTEP))
        candidates.append((dataset, BICUBIC, row.method, NOT_QUANTIZED, 1))
    return next((key for key in candidates if key in values), None)


def _line(found: Sequence[Key], values: dict[Key, pd.Series], metric: str) -> tuple:
    first, second = found
    table = pd.concat([values[first], values[second]], axis=1, keys=["first", "second"]).dropna()
    mean, low, high = paired_bootstrap(table["first"].to_numpy(), table["second"].to_numpy())
    note = FEW_NOTE if is_small(len(table)) else ""
    alone = second[1] in NO_MODEL
    settings = [str(a) if a == b or alone else f"{a} - {b}" for a, b in zip(first, second, strict=True)]
    name = f"{first[2]} - {second[2]}"
    verdict = _verdict(mean, low, high, metric)
    return (first[0], first[1], settings[3], settings[4], name, mean, low, high, len(table), verdict, note)


def _verdict(mean: float, low: float, high: float, metric: str) -> str:
    if math.isnan(mean):
        return "no value"
    if not (low > 0 or high < 0):
        return "undecided"
    return "helps" if (mean > 0) != lower_is_better(metric) else "hurts"
