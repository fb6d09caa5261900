"""Figures of notebook 06: where weights and operations sit, and what the bits of Table 2 are spent on."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qartsr_lib.show.figures.style import styled

PART_COLOURS = {"VAE encoder": "#4393c3", "UNet": "#d6604d", "VAE decoder": "#1b7837"}
ATTENTION_COLOUR = "#444444"
#: Colour-blind safe; the last component of a figure in grey.
COMPONENT_COLOURS = ("#2166ac", "#92c5de", "#762a83", "#e08214", "#fdb863", "#b2182b", "#bababa")
PAPER_COLOUR = "#111111"


def cost_by_block(parts: pd.DataFrame) -> Figure:
    """Weights (left) and operations (right) of every block in inference order, coloured by part.

    Args:
        parts: of one network, counting.measure_parts.
    """
    position = np.arange(len(parts))
    colours = [PART_COLOURS[part] for part in parts["part"]]
    with styled():
        figure, (weights, operations) = plt.subplots(1, 2, figsize=(8.6, 0.21 * len(parts) + 1.1), sharey=True)
        weights.barh(position, parts["weights_M"], color=colours, height=0.75)
        operations.barh(position, parts["layer_ops_G"], color=colours, height=0.75)
        operations.barh(
            position,
            parts["attention_ops_G"],
            left=parts["layer_ops_G"],
            color=ATTENTION_COLOUR,
            height=0.75,
            label="attention products (the paper leaves them out)",
        )
        for axis, column, unit in ((weights, "weights_M", "M weights"), (operations, "layer_ops_G", "G operations")):
            axis.set_xlabel(unit)
            axis.grid(axis="y", visible=False)
            total = parts[column].sum()
            handles = [
                plt.Rectangle((0, 0), 1, 1, color=PART_COLOURS[part], label=f"{part}: {100 * share / total:.0f} %")
                for part, share in parts.groupby("part", sort=False)[column].sum().items()
            ]
            extra = axis.get_legend_handles_labels()[0]
            # Where the bars are short: below in the UNet's weights, in the middle of the operations.
            place = "center right" if column == "layer_ops_G" else "lower right"
            axis.legend(handles=[*handles, *extra], loc=place, title="convolutions and linear layers")
            axis.set_xlim(left=0)
            axis.margins(y=0.01)
        weights.set_yticks(position, [_short(block) for block in parts["block"]], fontsize=7.5)
        weights.invert_yaxis()
        weights.set_ylabel("block, in inference order")
    return figure


def cost_components(components: pd.DataFrame, table: pd.DataFrame, bits: Sequence[str]) -> Figure:
    """What the honest rule counts, stacked, with the paper's rule as a mark; left storage, right operations.

    Args:
        components: rows of one method, counting.measure_components.
        table: Table 2 by both rules.
        bits: bars, from top to bottom.
    """
    position = np.arange(len(bits))
    rule = table[table["rule"] == "paper"].set_index("bits").loc[list(bits)]
    names = list(components["component"].unique())
    with styled():
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 0.42 * len(bits) + 1.7), sharey=True)
        for axis, column, unit in (
            (axes[0], "params_M", "M parameters of 32 bits"),
            (axes[1], "ops_G", "G operations of 32 bits"),
        ):
            values = components.pivot(index="bits", columns="component", values=column).loc[list(bits)]
            left = np.zeros(len(bits))
            for name, colour in zip(names, COMPONENT_COLOURS, strict=True):
                if components[["params_M", "ops_G"]][components["component"] == name].to_numpy().any():
                    axis.barh(position, values[name], left=left, color=colour, height=0.66, label=name)
                left += values[name].to_numpy()
            axis.plot(rule[column], position, "D", color=PAPER_COLOUR, mfc="white", ms=5, label="the paper's rule")
            axis.set_xlabel(unit)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(position, list(bits))
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _short(block: str) -> str:
    """ "enc down_blocks.0" for "vae.encoder.down_blocks.0"."""
    for start, short in (("vae.encoder.", "encoder "), ("vae.decoder.", "decoder "), ("unet.", "unet "), ("vae.", "")):
        if block.startswith(start):
            return short + block.removeprefix(start)
    return block
