"""Parameters and operations of a network, without its weights, under the paper's rule and an honest one."""

from qartsr_lib.study.experiments.counting.honest import components, honest_rows
from qartsr_lib.study.experiments.counting.models import MODELS, OUTPUT_SIZE, meta_model
from qartsr_lib.study.experiments.counting.paper import full_precision_residual, paper_rows
from qartsr_lib.study.experiments.counting.table2 import (
    by_block,
    counted,
    measure_components,
    measure_parts,
    measure_table2,
)
from qartsr_lib.study.experiments.counting.trace import torch_operations, trace

__all__ = [
    "MODELS",
    "OUTPUT_SIZE",
    "by_block",
    "components",
    "counted",
    "full_precision_residual",
    "honest_rows",
    "measure_components",
    "measure_parts",
    "measure_table2",
    "meta_model",
    "paper_rows",
    "torch_operations",
    "trace",
]
