"""Which model each method of a table, panel or picture runs on: all on the same one, or as in the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from qartsr_lib.study.paper import BICUBIC, NO_MODEL, OUTSIDE, papers_rows

#: Models by OSEDiff's recipe; rows of no other one are the paper's setting.
PAPERS_RECIPE = ("osediff", "embedded")
FULL = "FP"


@dataclass(frozen=True)
class Setting:
    """One comparison of methods."""

    name: str  # for file names, such as "embedded_T1" or "embedded_paper"
    title: str  # for people
    backbone: str  # name in BACKBONES
    timesteps: Mapping[str, int]  # method as in tables -> T of its model; full precision ("FP") is one of them
    pictured: bool = True  # not where the paper's setting shows the same rivals

    def rows(self, results: pd.DataFrame) -> pd.DataFrame:
        """The rows of `results` in this setting: full precision, bicubic, outside systems, then methods."""
        timestep = results["method"].map(dict(self.timesteps))
        model = (results["backbone"] == self.backbone) & (results["timestep"] == timestep)
        full = results["method"] == FULL
        others = [results[results["backbone"] == name] for name in (BICUBIC, OUTSIDE)]
        return pd.concat([results[model & full], *others, results[model & ~full]])


def cell_title(backbone: str, timestep: int) -> str:
    """A model for people, such as "embedded, T = 1"."""
    return f"{backbone}, T = {timestep}"


def settings(cells: Sequence[tuple[str, int]], methods: Sequence[str]) -> list[Setting]:
    """The paper's setting of every backbone that has T = 1000 and T = 1, then every (backbone, T) by itself.
    `cells`: (backbone, T) of the run. `methods`: names in the table."""
    cells, names = list(dict.fromkeys(cells)), [FULL, *methods]
    known = dict(papers_rows(3))
    timesteps = {method: known.get(method, 1000) for method in names}  # of the paper; rivals that it lacks as its own
    both = [name for name, _ in cells if name in PAPERS_RECIPE and {(name, 1000), (name, 1)} <= set(cells)]
    paper = [Setting(f"{name}_paper", f"{name}, the paper's setting", name, timesteps) for name in dict.fromkeys(both)]
    return paper + [
        Setting(f"{name}_T{t}", cell_title(name, t), name, dict.fromkeys(names, t), t == 1 or name not in both)
        for name, t in cells
    ]


def table_parts(results: pd.DataFrame) -> Iterator[tuple[str, Setting, pd.DataFrame]]:
    """(data set, setting, its rows), the settings of all models and methods of the table.

    A setting in which a data set has no model, only bicubic or outside systems, is left out.
    """
    ours = results[~results["backbone"].isin(NO_MODEL)]
    cells = ours[["backbone", "timestep"]].drop_duplicates().itertuples(index=False, name=None)
    found = settings(list(cells), [method for method in ours["method"].unique() if method != FULL])
    for dataset, part in results.groupby("dataset", sort=False):
        for setting in found:
            rows = setting.rows(part)
            if not rows["backbone"].isin(NO_MODEL).all():
                yield str(dataset), setting, rows
