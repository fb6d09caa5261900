"""The claims ledger as one picture."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qartsr_lib.show.figures.style import styled, subplots
from qartsr_lib.study.experiments.claims.ledger import STUDY, VERDICTS, verdict_text

#: Verdict -> colour, from good to open.
COLOURS = dict(zip(VERDICTS, ("#1b7837", "#e08214", "#b2182b", "#8c8c8c"), strict=True))
#: Characters in a line of a claim's sentence.
WIDTH = 64


@styled
def claim_bars(claims: pd.DataFrame, checks: pd.DataFrame) -> Figure:
    """Share of checks that hold, one bar per claim, with a dot and words for its verdict.

    The paper's claims stand above, our own questions below; claims without data have a dot and no bar.
    `claims`, `checks`: of a `claims.Ledger`.
    """
    held = checks[checks["missing"] == ""].groupby("id")["holds"].sum()
    own = claims["asked_by"] == STUDY
    groups = {"The paper's claims": claims[~own], "Our own questions": claims[own]}
    groups = {title: rows for title, rows in groups.items() if len(rows)}
    figure, ((axis,),) = subplots(1, 1, (8.5, 0.33 * len(claims) + 0.45 * len(groups) + 0.5))
    position, ticks = 0.0, {}
    for title, rows in groups.items():
        axis.text(-0.09, position, title, va="center", ha="right", fontsize=9, fontweight="bold")
        for row in rows.itertuples():
            position += 1
            sentence = row.claim.removeprefix("Our question: ")
            ticks[position] = textwrap.fill(sentence.replace(" = ", "\u00a0=\u00a0"), WIDTH)
            _bar(axis, position, row, int(held.get(row.id, 0)))
        position += 1.2
    axis.set_yticks(list(ticks), list(ticks.values()), fontsize=7)
    axis.set_xlim(-0.08, 1.75)
    axis.set_ylim(position - 0.6, -0.6)
    axis.set_xticks([0, 0.5, 1], ["none", "half", "all"])
    axis.set_xlabel("checks that hold", x=0.31)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_bounds(0, 1)
    axis.grid(False)
    return figure


def _bar(axis: Axes, position: float, row, held: int) -> None:
    colour = COLOURS[row.verdict]
    axis.plot(-0.04, position, "o", ms=7, color=colour)
    if row.measured:
        axis.barh(position, 1, height=0.7, color=colour, alpha=0.18)
        axis.barh(position, held / row.measured, height=0.7, color=colour)
    else:
        axis.text(0.0, position, "no data", va="center", fontsize=7, color="#666666")
    verdict = verdict_text(row.verdict, row.measured, row.checks).replace(" (", "\n(")
    share = f"{held} of {row.measured}: " if row.measured else ""
    axis.text(1.03, position, f"{share}{verdict}", va="center", fontsize=7, color="#333333", linespacing=1.1)
