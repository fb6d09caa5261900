"""Cells of notebook 14: what the shared setting and the budget do, on the test sets, one at a time and together."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import Options, training_options
from qartsr_lib.methods.setting import BEST, DEFAULT, Setting
from qartsr_lib.study.evaluator import Experiment
from qartsr_lib.study.experiments.grids import BOTH, ET, RPQ, VARIANTS, Ablation, Row, at_seeded_timestep, on_cells
from qartsr_lib.study.profiles import Profile

#: The shared setting, each of its two parts changed alone, and every list with fitted ranges.
SETTINGS = (
    DEFAULT,
    Setting("identity-path"),
    *(Setting(name, "least-squares") for name in ("passionsr", "first-last", "sensitive")),
    BEST,
)
#: Methods under all of SETTINGS, where the profile has them: nothing but ranges, the finest quantizer, and QArtSR.
COMPARED = ("maxmin", "svdquant-released", "qartsr")
LONGER = 8  # times the budget: for QArtSR under the two ends of SETTINGS, for LONGER_RIVALS under BEST
#: All other trained methods of Table 3: the one that the paper's list of 8-bit layers is from, and by rank at 2 bits.
LONGER_RIVALS = ("passionsr", "lsq-qat", "efficientdm", "q-dm", "lsq")
#: Rows of Table 4 made again under BEST: each stage with the whole budget, both, and both in order of inference.
STAGES = (RPQ, ET, BOTH, VARIANTS[0])


def setting_grid(profile: Profile) -> list[Experiment]:
    """Both models at T = 1, every bit width of Table 3 and data set.

    COMPARED under each of SETTINGS, all other methods under BEST, the best for QArtSR on BSDS500/val. One seed, but all
    that Table 3 has under BEST on its last model, whose UNet does its share of the work.
    """
    settings = {method: SETTINGS if method in COMPARED else (BEST,) for method in profile.methods}
    tried = [(method, setting) for method, those in settings.items() for setting in those]
    cells = [(bits, *cell) for bits, cell in product(profile.finetune_bits, tried)]
    rows = [_row(profile, method, bits, setting) for bits, method, setting in cells]
    best = [_row(profile, method, bits, BEST) for bits, method in product(profile.finetune_bits, profile.methods)]
    last = replace(profile, finetune_models=at_seeded_timestep(profile).finetune_models[-1:])
    return list(dict.fromkeys(_grid(profile, rows) + on_cells(last, lambda _: best)))


def budget_grid(profile: Profile) -> list[Experiment]:
    """Rows with LONGER times the budget (QArtSR, and LONGER_RIVALS of the profile), at the bit widths of Table 4.

    Under BEST there is profile.budget_curve, too, of QArtSR, and at the lowest width, where training does most, of all
    (at the others its first alone): where doubling gains less than 0.1 dB, it was long enough.
    """
    trained = ["qartsr", *(method for method in LONGER_RIVALS if method in profile.methods)]
    lowest = min(profile.ablation_bits)
    cells = [(bits, "qartsr", DEFAULT, LONGER) for bits in profile.ablation_bits]
    for bits, method in product(profile.ablation_bits, trained):
        further = profile.budget_curve if method == "qartsr" or bits == lowest else profile.budget_curve[:1]
        cells += [(bits, method, BEST, factor) for factor in (LONGER, *further)]
    return _grid(profile, [_row(profile, method, bits, *cell) for bits, method, *cell in cells])


def stage_grid(profile: Profile) -> list[Experiment]:
    """STAGES under BEST at the profile's budget and at LONGER times it, at the bit widths of Table 4; equal images."""
    cells = product((1, LONGER), profile.ablation_bits, STAGES)
    return _grid(profile, [_stage_row(profile, row, bits, factor) for factor, bits, row in cells])


def setting_label(method: str, setting: Setting, factor: int = 1) -> str:
    """Name in the table of a method under a setting, trained for `factor` times the budget."""
    return row_label(METHODS.get(method).label, setting, factor)


def row_label(name: str, setting: Setting, factor: int = 1) -> str:
    """`setting_label` of a row called `name` in the plain tables."""
    name = name.translate(str.maketrans("[]", "()"))  # one pair of brackets, the setting's
    longer = [f"{factor}x images"] if factor > 1 else []
    return f"{name} [{', '.join((setting.label, *longer))}]"


def _row(profile: Profile, method: str, bits: str, setting: Setting, factor: int = 1) -> Row:
    return method, bits, _options(profile, method, bits, setting, factor), setting_label(method, setting, factor)


def _stage_row(profile: Profile, row: Ablation, bits: str, factor: int) -> Row:
    options = _options(profile, row.method, bits, BEST, factor) + row.options
    return row.method, bits, options, row_label(row.label, BEST, factor)


def _options(profile: Profile, method: str, bits: str, setting: Setting, factor: int) -> Options:
    return training_options(method, bits, replace(profile, setting=setting.options), factor)


def _grid(profile: Profile, rows: list[Row]) -> list[Experiment]:
    return on_cells(replace(at_seeded_timestep(profile), seeds=profile.seeds[:1]), lambda _: rows)
