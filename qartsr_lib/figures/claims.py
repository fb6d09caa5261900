"""The claims ledger as one picture."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qartsr_lib.claims.ledger import VERDICTS
from qartsr_lib.figures.style import styled

#: Verdict -> colour, from good to open.
COLOURS = dict(zip(VERDICTS, ("#1b7837", "#e08214", "#b2182b", "#bdbdbd"), strict=True))


def claim_bars(claims: pd.DataFrame, checks: pd.DataFrame) -> Figure:
    """Share of checks that hold, one bar per claim in the colour of its verdict; the rest of the bar is pale.

    Args:
        claims, checks: of a `claims.Ledger`.
    """
    tested = checks[checks["missing"] == ""].groupby("id")["holds"].agg(["sum", "count"])
    with styled():
        figure, axis = plt.subplots(figsize=(7.5, 0.27 * len(claims) + 1.0))
        for position, row in enumerate(reversed(list(claims.itertuples()))):
            colour = COLOURS[row.verdict]
            held, count = (tested.loc[row.id, "sum"], tested.loc[row.id, "count"]) if row.id in tested.index else (0, 0)
            axis.barh(position, 1, color=colour, alpha=0.18)
            axis.barh(position, held / count if count else 0, color=colour)
            axis.text(1.02, position, f"{held} of {count}" if count else "no data", va="center", fontsize=8)
        axis.set_yticks(range(len(claims)), list(claims["id"])[::-1])
        axis.set_xlim(0, 1.18)
        axis.set_ylim(-0.7, len(claims) - 0.3)
        axis.set_xticks([0, 0.5, 1], ["none", "half", "all"])
        axis.set_xlabel("checks that hold")
        axis.grid(False)
        handles = [Patch(color=colour, label=verdict) for verdict, colour in COLOURS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure
