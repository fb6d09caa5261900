"""Notebook 06. Parameters and operations of a network without its weights, by the paper's rule and an honest one."""

from qartsr_lib.study.experiments.counting.honest import components, honest_rows
from qartsr_lib.study.experiments.counting.paper import full_precision_residual
from qartsr_lib.study.experiments.counting.table2 import measure_components, measure_parts, measure_table2
from qartsr_lib.study.experiments.counting.trace import OUTPUT_SIZE, counted, torch_operations

__all__ = ["OUTPUT_SIZE", "components", "counted", "full_precision_residual", "honest_rows"]
__all__ += ["measure_components", "measure_parts", "measure_table2", "torch_operations"]
