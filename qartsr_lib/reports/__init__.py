"""What the notebooks show: data frames, picture rows and sentences made from results."""

from qartsr_lib.reports.availability import dataset_availability, metric_availability
from qartsr_lib.reports.backbones import backbone_sizes, time_shares, training_history
from qartsr_lib.reports.comparison import paired_differences, ranks, table3_sections, table4_sections
from qartsr_lib.reports.crops import full_precision_crops, method_crops, quantized_crops
from qartsr_lib.reports.table1 import knob_table, part_table, quality_sections, table1_sections, timestep_effect
from qartsr_lib.reports.table2 import component_table, honest_rule_table, paper_rule_table, part_shares, table2_sections
from qartsr_lib.reports.theorem import encoder_table, error_table, law_table, theorem_verdict

__all__ = [
    "backbone_sizes",
    "component_table",
    "dataset_availability",
    "encoder_table",
    "error_table",
    "full_precision_crops",
    "honest_rule_table",
    "knob_table",
    "paper_rule_table",
    "part_shares",
    "part_table",
    "law_table",
    "method_crops",
    "metric_availability",
    "paired_differences",
    "quality_sections",
    "quantized_crops",
    "ranks",
    "table1_sections",
    "table2_sections",
    "table3_sections",
    "table4_sections",
    "theorem_verdict",
    "time_shares",
    "timestep_effect",
    "training_history",
]
