"""What the notebooks show: data frames, picture rows and sentences made from results."""

from qartsr_lib.reports.availability import dataset_availability, metric_availability
from qartsr_lib.reports.backbones import backbone_sizes, time_shares, training_history
from qartsr_lib.reports.claims import check_sections, verdict_sections
from qartsr_lib.reports.comparison import ranks, table3_sections, table4_note, table4_sections
from qartsr_lib.reports.crops import full_precision_crops, quantized_crops
from qartsr_lib.reports.deployment import counted_ratios, deployment_sections
from qartsr_lib.reports.differences import (
    TABLE4_EFFECTS,
    Row,
    difference_sections,
    paired_differences,
    table3_effects,
)
from qartsr_lib.reports.pictures import figure1_blocks, figure3_blocks, figure6_blocks
from qartsr_lib.reports.settings import Setting, settings
from qartsr_lib.reports.table1 import knob_table, part_table, quality_sections, table1_sections, timestep_effect
from qartsr_lib.reports.table2 import component_table, honest_rule_table, paper_rule_table, part_shares, table2_sections
from qartsr_lib.reports.theorem import encoder_table, error_table, law_table, theorem_verdict
from qartsr_lib.reports.times import computing_times

__all__ = [
    "Row",
    "Setting",
    "TABLE4_EFFECTS",
    "backbone_sizes",
    "check_sections",
    "component_table",
    "computing_times",
    "counted_ratios",
    "dataset_availability",
    "deployment_sections",
    "difference_sections",
    "encoder_table",
    "error_table",
    "figure1_blocks",
    "figure3_blocks",
    "figure6_blocks",
    "full_precision_crops",
    "honest_rule_table",
    "knob_table",
    "law_table",
    "metric_availability",
    "paired_differences",
    "paper_rule_table",
    "part_shares",
    "part_table",
    "quality_sections",
    "quantized_crops",
    "ranks",
    "settings",
    "table1_sections",
    "table2_sections",
    "table3_effects",
    "table3_sections",
    "table4_note",
    "table4_sections",
    "theorem_verdict",
    "time_shares",
    "timestep_effect",
    "training_history",
    "verdict_sections",
]
