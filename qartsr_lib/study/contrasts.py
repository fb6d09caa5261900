"""What one row is worth against another: differences paired over images, with intervals and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qartsr_lib.images.metrics import lower_is_better
from qartsr_lib.methods.setting import BEST, DEFAULT, Setting
from qartsr_lib.study.evaluator import FULL_PRECISION
from qartsr_lib.study.experiments import grids, setting_grids
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL, NO_MODEL, NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.results import KEYS
from qartsr_lib.study.stats import few_note, mean_interval

Key = tuple[str, str, int, str, str]  # values of KEYS
_VALUES = ("value", "ci_low", "ci_high")  # the first goes by the metric's name
COLUMNS = ("dataset", "backbone", "bits", "T", "difference", *_VALUES, "n_images", "verdict", "note")


@dataclass(frozen=True)
class Row:
    """One row of a table, as a pair of `paired_differences` names it."""

    method: str  # name in the table. FP, bicubic and outside systems are taken at W32A32 whatever the bit width.
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


def table3_effects(rows: pd.DataFrame, ours: str = "QArtSR") -> dict[str, Pairs]:
    """Pairs of Table 3, title -> pairs: `ours` against full precision, bicubic, and whatever else `rows` have."""
    rivals = [method for method in _methods(rows) if method != ours]
    outside = rows.loc[rows["backbone"] == OUTSIDE, "method"].unique()
    return {
        "The same model": _against(ours, ["FP", BICUBIC_LABEL, *rivals, *outside]),
        "The paper's setting: T = 1 minus rivals at T = 1000": [
            (Row(ours, timestep=1), Row(rival, timestep=1000)) for rival in ["FP", *rivals]
        ],
    }


def budget_effects(rows: pd.DataFrame, factors: Sequence[int]) -> dict[str, Pairs]:
    """Pairs of `grids.budget_grid`, title -> pairs: the methods of `rows`, trained `factors` times as long."""
    names = _methods(rows)
    longer = [(grids.budget_label(name, factor), name) for name in names for factor in factors]
    return {
        "What a longer training gains": [(Row(long), Row(name)) for long, name in longer],
        "Distance to full precision": [(Row(name), Row("FP")) for name in names],
    }


def _methods(rows: pd.DataFrame) -> list[str]:
    """Names in the table of all that ran on a model of the study, in their order, but full precision."""
    names = rows.loc[~rows["backbone"].isin(NO_MODEL), "method"].unique()
    return [name for name in names if name != "FP"]


_LOSSES = [grids.loss_label(loss) for loss in grids.IMAGE_LOSSES]
#: Of `grids.loss_grid`, title -> pairs.
LOSS_EFFECTS: dict[str, Pairs] = {
    "One image loss against the other": _against(_LOSSES[0], _LOSSES[1:]),
    "Distance to full precision": [(Row(loss), Row("FP")) for loss in _LOSSES],
}

_LABEL, _BUDGET = setting_grids.setting_label, setting_grids.LONGER
_ORIGINAL = _LABEL("qartsr", DEFAULT)
_CAUSES = [_LABEL("qartsr", setting) for setting in (Setting(BEST.eight_bit), Setting(ranges=BEST.ranges))]
_CAUSES += [_LABEL("qartsr", *row) for row in ((DEFAULT, _BUDGET), (BEST,), (BEST, _BUDGET))]
_RIVALS = [_LABEL(rival, BEST, _BUDGET) for rival in setting_grids.LONGER_RIVALS]
#: What turned, title -> pairs: list, ranges and budget one at a time, the first two, all three; and against rivals.
CAUSE_EFFECTS: dict[str, Pairs] = {
    "Against the shared setting": [(Row(name), Row(_ORIGINAL)) for name in _CAUSES],
    "Distance to full precision": [(Row(name), Row("FP")) for name in (_ORIGINAL, *_CAUSES, *_RIVALS)],
    "QArtSR against rivals, all trained longer": _against(_CAUSES[-1], _RIVALS),
}


def _stage_pairs(factor: int) -> Pairs:
    *others, both, inference = (setting_grids.row_label(row.label, BEST, factor) for row in setting_grids.STAGES)
    return _against(both, [*others, inference])


#: Of `setting_grids.stage_grid`, title -> pairs: both stages, the paper's order, against the others.
STAGE_EFFECTS: dict[str, Pairs] = {
    "Equal images": _stage_pairs(1),
    f"Equal images, {_BUDGET} times as many": _stage_pairs(_BUDGET),
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
        `COLUMNS`, the value by the metric's name. verdict: "helps", "hurts", "undecided" (the interval holds zero, or
        there is none) or "no value"; note: few images. bits and T read "a - b" where the rows differ in them.
    """
    scored = per_image[per_image["metric"] == metric]
    values = {key: image_means(rows) for key, rows in scored.groupby(list(KEYS), sort=False)}
    lines: dict[tuple, tuple] = {}
    for model in dict.fromkeys(key[:2] for key in values if key[1] not in NO_MODEL):
        settings = dict.fromkeys((key[2], key[4]) for key in values if key[:2] == model)
        for pair in pairs:
            for timestep, bits in settings:
                found = tuple(_find(values, row, (*model, timestep), bits) for row in pair)
                if None not in found and found not in lines:
                    lines[found] = _line(*found, values, metric)
    table = pd.DataFrame(list(lines.values()), columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(_VALUES, float)).round(3)
    return table.rename(columns={"value": metric})


def difference_sections(
    per_image: pd.DataFrame, effects: Mapping[str, Pairs], metrics: Sequence[str] = ()
) -> list[tuple[str, pd.DataFrame]]:
    """[(title, `paired_differences`)] of every entry of `effects` that has at least one pair.

    Of PSNR, or of all `metrics`, which the titles then name.
    """
    sections = [
        (title + f": {metric}" * bool(metrics), paired_differences(per_image, pairs, metric))
        for metric in metrics or ["PSNR"]
        for title, pairs in effects.items()
    ]
    return [section for section in sections if len(section[1])]


def _find(values: Mapping[Key, pd.Series], row: Row, model: tuple[str, str, int], bits: str) -> Key | None:
    dataset, backbone, timestep = model
    timestep = timestep if row.timestep is None else row.timestep
    places = [(backbone, timestep), (OUTSIDE, NO_TIMESTEP), (BICUBIC, 1)]
    candidates = [(dataset, backbone, timestep, row.method, bits)]
    candidates += [(dataset, *place, row.method, FULL_PRECISION[1]) for place in places]
    return next((key for key in candidates if key in values), None)


def _line(first: Key, second: Key, values: Mapping[Key, pd.Series], metric: str) -> tuple:
    difference = paired([values[first]], [values[second]])
    mean, low, high = mean_interval(difference)
    (dataset, backbone, *own), (_, other, *others) = first, second
    timestep, _, bits = (
        str(a) if a == b or other in NO_MODEL else f"{a} - {b}" for a, b in zip(own, others, strict=True)
    )
    verdict = "undecided"
    if math.isnan(mean):
        verdict = "no value"
    elif low > 0 or high < 0:
        verdict = "helps" if (mean > 0) != lower_is_better(metric) else "hurts"
    names, n = f"{own[1]} - {others[1]}", len(difference)
    return dataset, backbone, bits, timestep, names, mean, low, high, n, verdict, few_note(n)
