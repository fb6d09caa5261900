"""Figure of where the time goes, by block and pass."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.show.figures.style import styled, subplots

#: In the order of the bars; what integers alone do between two products in the colours of warning.
PASS_COLOURS = {
    "product": "#2166ac",
    "attention": "#762a83",
    "norm": "#92c5de",
    "activation": "#1b7837",
    "encode": "#e08214",
    "finish": "#b2182b",
    "rest": "#bababa",
}


@styled
def time_by_block(rows: pd.DataFrame) -> Figure:
    """Milliseconds of every block in inference order, stacked by pass; a panel for each network, on one scale.
    `rows`: of one backbone and T, experiments.passes.measure_passes."""
    networks = list(rows.groupby(["method", "bits", "runtime"], sort=False))
    order = list(dict.fromkeys(rows["block"]))
    figure, (axes,) = subplots(1, len(networks), (2.2 + 2.1 * len(networks), 0.21 * len(order) + 1.4), sharey=True)
    longest = rows.groupby(["method", "bits", "runtime", "block"])["ms"].sum().max()
    for axis, ((method, bits, runtime), part) in zip(axes, networks, strict=True):
        table = part.pivot(index="block", columns="pass", values="ms").reindex(order).fillna(0.0)
        left = pd.Series(0.0, order)
        for name, colour in PASS_COLOURS.items():
            if name in table:
                axis.barh(range(len(order)), table[name], 0.75, left, color=colour)
                left = left + table[name]
        title = "full precision" if method == "FP" else f"{method} {bits}"
        axis.set(title=f"{title}\n{runtime}: {left.sum():.0f} ms", xlabel="ms", xlim=(0, 1.03 * longest))
        axis.grid(axis="y", visible=False)
    names = {r"^vae\.encoder\.": "encoder ", r"^vae\.decoder\.": "decoder ", r"^unet\.": "unet ", r"^vae\.": ""}
    axes[0].set_yticks(range(len(order)), pd.Series(order).replace(names, regex=True), fontsize=7.5)
    axes[0].margins(y=0.01)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("block, in inference order")
    shown = [name for name in PASS_COLOURS if name in set(rows["pass"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PASS_COLOURS[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
