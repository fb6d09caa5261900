# ruff: noqa: F401 - names for the notebooks
"""Figures of the study: every function returns a matplotlib Figure, `save` writes it."""

from qartsr_lib.show.figures.anatomy import channel_ranges, component_bars, layer_errors
from qartsr_lib.show.figures.budget import budget_curves
from qartsr_lib.show.figures.claims import claim_bars
from qartsr_lib.show.figures.cost import cost_by_block, cost_components, deployment_scatter, time_by_block
from qartsr_lib.show.figures.pictures import photograph_blocks, stage_grid
from qartsr_lib.show.figures.quality import learning_curves, loss_curves, metric_panels, quality_against_bits
from qartsr_lib.show.figures.sensitivity import sensitivity
from qartsr_lib.show.figures.style import save
from qartsr_lib.show.figures.theorem import contribution_bars, error_histograms, schedule_curves, theorem_laws
