"""Figures of the study: every function returns a matplotlib Figure, `save` writes it."""

from qartsr_lib.show.figures.anatomy import channel_ranges, component_bars, layer_errors
from qartsr_lib.show.figures.blocks import photograph_blocks
from qartsr_lib.show.figures.claims import claim_bars
from qartsr_lib.show.figures.comparison import loss_curves, metric_panels
from qartsr_lib.show.figures.cost import cost_by_block, cost_components
from qartsr_lib.show.figures.curves import (
    contribution_bars,
    error_histograms,
    learning_curves,
    quality_against_bits,
    schedule_curves,
    theorem_laws,
)
from qartsr_lib.show.figures.deployment import deployment_scatter
from qartsr_lib.show.figures.grids import comparison_grid, stage_grid
from qartsr_lib.show.figures.style import save

__all__ = [
    "channel_ranges",
    "claim_bars",
    "comparison_grid",
    "component_bars",
    "contribution_bars",
    "cost_by_block",
    "cost_components",
    "deployment_scatter",
    "error_histograms",
    "layer_errors",
    "learning_curves",
    "loss_curves",
    "metric_panels",
    "photograph_blocks",
    "quality_against_bits",
    "save",
    "schedule_curves",
    "stage_grid",
    "theorem_laws",
]
