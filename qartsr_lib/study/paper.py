"""The paper's Tables 1 to 4 as transcribed, and the names under which its rows stand beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study.profiles import ALL_METRICS

REFERENCE = Path(__file__).resolve().parent / "reference"
#: Backbone and T of rows that are not made here, see `qartsr_lib.study.outside`.
OUTSIDE, NO_TIMESTEP = "outside", 0
#: Backbone and method of the rows of plain interpolation.
BICUBIC, BICUBIC_LABEL = "bicubic", "Bicubic"
#: Backbones of rows that no model of the study stands behind: they belong to every setting.
NO_MODEL = (OUTSIDE, BICUBIC)
#: The paper's name of a row -> ours.
PAPER_NAMES = {"OSEDiff": "FP"}
#: The data set whose rows of the paper stand beside data sets that it lacks.
STAND_IN = "RealSR"


def paper_table(number: int) -> pd.DataFrame:
    """Table 1, 2, 3 or 4 of the paper as transcribed: wide, one column per metric."""
    path = REFERENCE / f"table{number}.csv"
    if not path.is_file():
        raise QartsrError(f"the paper's table {number} is not transcribed; choose 1, 2, 3 or 4")
    return pd.read_csv(path)


def papers_rows(number: int) -> set[tuple[str, int]]:
    """(method by our name, T) of every row of the paper's Table 1 or 3: the setting that it reports."""
    paper = paper_table(number)
    return set(zip(paper["method"].replace(PAPER_NAMES), paper["timestep"].astype(int), strict=True))


def paper_values(number: int, keys: Sequence[str], dataset: str) -> dict[tuple, float]:
    """(values of `keys`..., metric) -> the paper's number, of a data set or, where the paper lacks it, of STAND_IN.

    These are of other images and another model: for orientation only. `keys`: columns of the transcription of its table
    `number`; methods go by our names (PAPER_NAMES).
    """
    paper = paper_table(number)
    if "method" in paper:
        paper = paper.assign(method=paper["method"].replace(PAPER_NAMES))
    rows = paper[paper["dataset"] == (dataset if dataset in set(paper["dataset"]) else STAND_IN)]
    metrics = [column for column in paper if column in ALL_METRICS]
    known = rows.melt(id_vars=list(keys), value_vars=metrics, var_name="metric").dropna(subset=["value"])
    return dict(zip(known[[*keys, "metric"]].itertuples(index=False, name=None), known["value"], strict=True))
