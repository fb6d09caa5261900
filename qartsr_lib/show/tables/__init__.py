"""What the notebooks show: data frames, pictures and sentences made from results.

Modules load when one of their names is first used, so that the web page does not wait for the networks' packages.
"""

import importlib

_MODULES = {
    "claims": "check_sections verdict_sections verdict_summary",
    "cost": "component_table computing_times counted_ratios deployment_sections honest_rule_table paper_rule_table "
    "part_shares pass_sections table2_sections",
    "machine": "backbone_sizes dataset_availability metric_availability time_shares training_history",
    "pictures": "figure1_blocks figure3_blocks figure6_blocks full_precision_crops loss_histories quantized_crops",
    "quality": "absent_note mean_psnr quality_sections ranks table1_sections table3_sections table4_note "
    "table4_sections timestep_effect",
    "rates": "ingredient_sections rate_sections setting_sections spread_sections",
    "render": "save_table save_text to_html to_markdown",
    "setting": "Setting cell_title settings table_parts",
    "theorem": "encoder_table error_table law_table theorem_verdict",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = list(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
