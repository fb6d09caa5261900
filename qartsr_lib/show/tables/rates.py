"""The learning-rate tries as tables for people."""

from __future__ import annotations

import pandas as pd

from qartsr_lib.methods import METHODS
from qartsr_lib.study.experiments.rates import FIRST_LOOK, choose, criterion


def rate_sections(tries: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(title, text table)]: what each look chose, then the criterion of every try, results/study/tries.csv."""
    first, both = choose(tries[tries["factor"].isin(FIRST_LOOK)]), choose(tries)
    chosen = [
        {
            "method": METHODS.get(method).label,
            "bits": bits,
            "first look": f"{first[method][bits]:g}",
            "after the second": f"{factor:g}",
            "changed": "yes" if factor != first[method][bits] else "",
        }
        for method, factors in both.items()
        for bits, factor in factors.items()
    ]
    values = criterion(tries).unstack("factor").sort_index(axis=1).rename(columns="{:g}".format)
    every = values.map("{:.2f}".format).replace("nan", "").rename_axis(columns=None).reset_index()
    every["method"] = every["method"].map(lambda method: METHODS.get(method).label)
    return [("Chosen factor", pd.DataFrame(chosen)), ("Logarithm of error times distance, lower is better", every)]
