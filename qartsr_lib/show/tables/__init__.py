"""What the notebooks show: data frames, picture rows and sentences made from results.

Modules load when one of their names is first used, so that the web page, which computes nothing, does
not wait for the networks' packages.
"""

import importlib

# At once, because the function has its module's name.
from qartsr_lib.show.tables.settings import Setting, cell_title, settings, table_parts

_MODULES = {
    "availability": ("dataset_availability", "metric_availability"),
    "backbones": ("backbone_sizes", "time_shares", "training_history"),
    "claims": ("check_sections", "verdict_sections", "verdict_summary"),
    "comparison": ("ranks", "table3_sections", "table4_note", "table4_sections"),
    "crops": ("full_precision_crops", "quantized_crops"),
    "deployment": ("counted_ratios", "deployment_sections"),
    "learning": ("loss_histories",),
    "pictures": ("figure1_blocks", "figure3_blocks", "figure6_blocks"),
    "rates": ("rate_sections",),
    "table1": ("knob_table", "part_table", "quality_sections", "table1_sections", "timestep_effect"),
    "table2": ("component_table", "honest_rule_table", "paper_rule_table", "part_shares", "table2_sections"),
    "theorem": ("encoder_table", "error_table", "law_table", "theorem_verdict"),
    "times": ("computing_times",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["Setting", "cell_title", "settings", "table_parts", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
