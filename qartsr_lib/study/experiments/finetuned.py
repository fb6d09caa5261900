"""Notebooks 04 and 05. Which cells Tables 3 and 4 have, and TRQ's choice of the timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import luma, psnr
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.qartsr import QArtSR
from qartsr_lib.methods.rates import Options, training_options
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.experiments.maxmin import bicubic_rows
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import Profile
from qartsr_lib.study.results import KEYS, read_measurement

#: Bit widths and T at which trained methods are repeated over all seeds.
SEEDED_BITS, SEEDED_TIMESTEP = ("W4A4", "W2A2"), 1


def comparison_grid(profile: Profile) -> list[Experiment]:
    """Table 3: bicubic interpolation; full precision and every method on every cell, bit width and data set."""
    grid = []
    for cell in profile.finetune_models:
        grid.append(Experiment(*cell, *FULL_PRECISION, "", profile.seeds[0]))
        for bits, method in product(profile.finetune_bits, profile.methods):
            options, seeds = training_options(method, bits, profile), _seeds(profile, method, *cell, bits)
            grid += [Experiment(*cell, method, bits, "", seed, options) for seed in seeds]
    return (bicubic_rows(profile) if grid else []) + _on_every_data_set(grid, profile)


def budget_grid(profile: Profile, factors: Sequence[int]) -> list[Experiment]:
    """Whether longer training closes the gap to full precision: the profile's budget and multiples of it, one seed.

    At the highest bit width of Table 3 and T = SEEDED_TIMESTEP; rates stay as they were chosen for the plain budget.
    """
    bits, seed, grid = profile.finetune_bits[0], profile.seeds[0], []
    trained = [method for method in profile.methods if METHODS.get(method).trains]
    for cell in (cell for cell in profile.finetune_models if cell[1] == SEEDED_TIMESTEP):
        grid.append(Experiment(*cell, *FULL_PRECISION, "", seed))
        for factor, method in product((1, *factors), trained):
            options, label = training_options(method, bits, profile, factor), budget_label(method, factor)
            grid.append(Experiment(*cell, method, bits, "", seed, options, label))
    return _on_every_data_set(grid, profile)


def budget_label(method: str, factor: int) -> str:
    """Name in the table of a method that was trained for `factor` times the budget."""
    label = METHODS.get(method).label
    return label if factor == 1 else f"{label} [{factor}x images]"


def _seeds(profile: Profile, method: str, backbone: str, timestep: int, bits: str) -> tuple[int, ...]:
    repeated = METHODS.get(method).trains and timestep == SEEDED_TIMESTEP and bits in SEEDED_BITS
    return profile.seeds if repeated else profile.seeds[:1]


def _on_every_data_set(grid: Sequence[Experiment], profile: Profile) -> list[Experiment]:
    return [replace(experiment, dataset=dataset) for experiment, dataset in product(grid, profile.datasets)]


@dataclass(frozen=True)
class Ablation:
    """One row of Table 4.

    Attributes:
        label, method: name in the table, unique, and in METHODS.
        rpq, et: whether the stage is there.
        share: of the profile's budget.
        versions: "paper" (ET adds steps), "equal" (equal steps), or both.
        order, loss: of RPQ's modules; "module" and "image" are the halves of Eq. (8).
    """

    label: str
    method: str
    rpq: int
    et: int
    share: float
    versions: tuple[str, ...] = ("equal",)
    order: str = "reverse"
    loss: str = "both"

    @property
    def options(self) -> Options:
        """QArtSR's own; defaults are left out, so that the full method is the same model as Table 3's."""
        settings = {"rpq": (0.5 if self.et else 1.0) if self.rpq else 0.0}
        if self.rpq:
            settings |= {"order": self.order, "loss": self.loss}
        changed = [(name, value) for name, value in settings.items() if value != QArtSR.own_options[name]]
        return tuple(changed) if self.method != "maxmin" else ()


_HALF, _PAPER, _ALL = " [half the budget]", ("paper",), ("paper", "equal")
BASELINE = Ablation("MaxMin", "maxmin", 0, 0, 0.0, _ALL, "none", "none")
RPQ_HALF = Ablation("RPQ*" + _HALF, "qartsr", 1, 0, 0.5, _PAPER)
RPQ = Ablation("RPQ*", "qartsr", 1, 0, 1.0)
ET_HALF = Ablation("ET" + _HALF, "qartsr", 0, 1, 0.5, _PAPER, "none", "image")
ET = Ablation("ET", "qartsr", 0, 1, 1.0, order="none", loss="image")
BOTH = Ablation("RPQ*+ET", "qartsr", 1, 1, 1.0, _ALL)
#: What the paper claims and does not measure: the order of the modules, each half of Eq. (8); and the ranks.
VARIANTS = (
    Ablation("RPQ*+ET [inference order]", "qartsr", 1, 1, 1.0, order="inference"),
    Ablation("RPQ*+ET [random order]", "qartsr", 1, 1, 1.0, order="random"),
    Ablation("RPQ*+ET [module loss]", "qartsr", 1, 1, 1.0, loss="module"),
    Ablation("RPQ*+ET [image loss]", "qartsr", 1, 1, 1.0, loss="image"),
    Ablation("RPQ*+ET [published ranks]", "qartsr-ranks", 1, 1, 1.0),
)
WITH_TRQ = (BASELINE, RPQ_HALF, RPQ, ET_HALF, ET, BOTH, *VARIANTS)
#: TRQ is the choice of T = 1; without it the paper has no row with ET.
WITHOUT_TRQ = WITH_TRQ[:3]


def ablation_grid(profile: Profile) -> list[Experiment]:
    """Table 4: full precision and the rows with or without TRQ, on every cell, bit width and data set."""
    grid = []
    for cell in profile.finetune_models:
        grid.append(Experiment(*cell, *FULL_PRECISION, "", profile.seeds[0]))
        for bits, row in product(profile.ablation_bits, WITH_TRQ if cell[1] == 1 else WITHOUT_TRQ):
            options = training_options(row.method, bits, profile, row.share) + row.options
            seeds = _seeds(profile, row.method, *cell, bits)
            grid += [Experiment(*cell, row.method, bits, "", seed, options, row.label) for seed in seeds]
    return _on_every_data_set(grid, profile)


def with_stages(table: pd.DataFrame) -> pd.DataFrame:
    """Table 4's rows with the columns trq, rpq, et (0 or 1), order, loss and version; one row per version."""
    rows, frames = {row.label: row for row in WITH_TRQ}, []
    for (timestep, label), part in table.groupby(["timestep", "method"], sort=False):
        row = rows.get(label, BASELINE)  # full precision has no stages either
        stages = {"trq": int(timestep == 1), "rpq": row.rpq, "et": row.et, "order": row.order, "loss": row.loss}
        frames += [part.assign(**stages, version=version) for version in row.versions]
    return pd.concat(frames, ignore_index=True)


_TIMESTEP_CELL = tuple(column for column in KEYS if column != "method")
_TIMESTEP_COLUMNS = [*_TIMESTEP_CELL, "image", "psnr_fp"]


def measure_timesteps(
    profile: str,
    backbones: Sequence[str],
    timesteps: Sequence[int],
    bits: Sequence[str],
    calibration: CalibrationList,
) -> Measured:
    """PSNR-Y in dB between MaxMin's image and full precision's, per calibration image; cached cell by cell.

    The paper chooses T by Table 1, on test sets. Here the choice is made on calibration images; test sets come after.

    Returns:
        Rows dataset (the calibration list's name), backbone, timestep, bits, image (its index), psnr_fp.
    """
    questions = {
        (name, timestep): {
            "parameters": {"measurement": "choice of T", "backbone": name, "timestep": timestep, "method": "maxmin"}
            | {"bits": list(bits)},
            "weights_sha256": load_backbone(name, timestep).weights_sha256,
            "calibration": {"name": calibration.name, "sha256": calibration.sha256},
        }
        for name, timestep in product(backbones, timesteps)
    }

    def measure(cell: tuple[str, int]) -> pd.DataFrame:
        full, rows = load_backbone(*cell), []
        quantized = {width: METHODS.get("maxmin").build(full, width, calibration.images).backbone for width in bits}
        with torch.inference_mode():
            for index, image in enumerate(progress(calibration.images, f"choice of T, {cell[0]} T={cell[1]}")):
                wanted = luma(full.upscale(image))
                for width, model in quantized.items():
                    rows.append((calibration.name, *cell, width, index, psnr(luma(model.upscale(image)), wanted)))
        return pd.DataFrame(rows, columns=_TIMESTEP_COLUMNS)

    return measure_questions(profile, questions, measure)


def write_choice(choice: Measured, name: str, keep: bool = False) -> pd.DataFrame:
    """Write `measure_timesteps` as results/<profile>/<name>.csv; returns its rows.

    With `keep` the rows of other models and bit widths stay: for a part of Table 4.
    """
    choice.write(name, by=_TIMESTEP_CELL if keep else ("dataset",))
    return read_measurement(choice.profile, name, _TIMESTEP_COLUMNS)


def timestep_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR-Y to full precision: rows (backbone, bits), one column per T, and the T with the highest mean."""
    means = measured.pivot_table(index=["backbone", "bits"], columns="timestep", values="psnr_fp", sort=False)
    means = means[sorted(means.columns, reverse=True)]
    best = means.idxmax(axis=1)
    return means.round(2).rename(columns=lambda timestep: f"T = {timestep}").assign(chosen=best)
