"""Which cells Tables 3 and 4 have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from qartsr_lib.methods import METHODS
from qartsr_lib.methods.qartsr import QArtSR
from qartsr_lib.methods.rates import Options, training_options
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.experiments.grids import bicubic_rows
from qartsr_lib.study.profiles import Profile

#: Bit widths and T at which trained methods are repeated over all seeds.
SEEDED_BITS, SEEDED_TIMESTEP = ("W4A4", "W2A2"), 1


def comparison_grid(profile: Profile) -> list[Experiment]:
    """Table 3: bicubic interpolation; full precision and every method on every cell, bit width and data set."""
    grid = bicubic_rows(profile) if profile.finetune_cells else []
    for backbone, timestep in profile.finetune_cells:
        models: list[tuple[str, str, int, Options]] = [(*FULL_PRECISION, profile.seeds[0], ())]
        for bits in profile.finetune_bits:
            for method in profile.methods:
                options = training_options(method, bits, profile)
                models += [(method, bits, seed, options) for seed in _seeds(profile, method, timestep, bits)]
        grid += [
            Experiment(backbone, timestep, method, bits, dataset, seed, options)
            for method, bits, seed, options in models
            for dataset in profile.datasets
        ]
    return grid


def budget_grid(profile: Profile, factors: Sequence[int]) -> list[Experiment]:
    """Whether longer training closes the gap to full precision: the profile's budget and multiples of it, one seed.

    At the highest bit width of Table 3 and T = SEEDED_TIMESTEP; rates stay as they were chosen for the plain budget.
    """
    bits, seed = profile.finetune_bits[0], profile.seeds[0]
    cells = [cell for cell in profile.finetune_cells if cell[1] == SEEDED_TIMESTEP]
    trained = [method for method in profile.methods if METHODS.get(method).trains]
    models: list[tuple[str, str, Options, str]] = [(*FULL_PRECISION, (), "")]
    for factor in (1, *factors):
        models += [
            (method, bits, training_options(method, bits, profile, factor), budget_label(method, factor))
            for method in trained
        ]
    return [
        Experiment(*cell, method, bits, dataset, seed, options, label)
        for cell in cells
        for method, bits, options, label in models
        for dataset in profile.datasets
    ]


def budget_label(method: str, factor: int) -> str:
    """Name in the table of a method that was trained for `factor` times the budget."""
    label = METHODS.get(method).label
    return label if factor == 1 else f"{label} [{factor}x images]"


def _seeds(profile: Profile, method: str, timestep: int, bits: str) -> tuple[int, ...]:
    repeated = METHODS.get(method).trains and timestep == SEEDED_TIMESTEP and bits in SEEDED_BITS
    return profile.seeds if repeated else profile.seeds[:1]


@dataclass(frozen=True)
class Ablation:
    """One row of Table 4.

    Attributes:
        label: method name in the table; unique for a timestep.
        method: name in METHODS.
        share: of the profile's budget.
        options: QArtSR's own.
        rpq, et: whether the stage is there.
        order, loss: of RPQ; "none" without it.
        versions: "paper" (ET adds steps), "equal" (equal steps), or both.
    """

    label: str
    method: str
    share: float
    options: Options
    rpq: int
    et: int
    order: str
    loss: str
    versions: tuple[str, ...] = ("paper", "equal")


def _qartsr(
    label: str, rpq: int, et: int, share: float, versions: tuple[str, ...], method: str = "qartsr", **changed
) -> Ablation:
    part = 1.0 if not et else 0.5 if rpq else 0.0
    order, loss = changed.get("order", "reverse"), changed.get("loss", "both")
    settings = {"rpq": part, "order": order, "loss": loss}
    # Defaults are left out, so that the full method is the same model as Table 3's.
    options = tuple((name, value) for name, value in settings.items() if value != QArtSR.own_options[name])
    if not rpq:
        order, loss = "none", "image"
    return Ablation(label, method, share, options, rpq, et, order, loss, versions)


BASELINE = Ablation("MaxMin", "maxmin", 0.0, (), 0, 0, "none", "none")
RPQ_HALF = _qartsr("RPQ* [half the budget]", 1, 0, 0.5, ("paper",))
RPQ = _qartsr("RPQ*", 1, 0, 1.0, ("equal",))
ET_HALF = _qartsr("ET [half the budget]", 0, 1, 0.5, ("paper",))
ET = _qartsr("ET", 0, 1, 1.0, ("equal",))
BOTH = _qartsr("RPQ*+ET", 1, 1, 1.0, ("paper", "equal"))
#: What the paper claims and does not measure: the order of the modules, each half of Eq. (8); and the ranks.
VARIANTS = (
    _qartsr("RPQ*+ET [inference order]", 1, 1, 1.0, ("equal",), order="inference"),
    _qartsr("RPQ*+ET [random order]", 1, 1, 1.0, ("equal",), order="random"),
    _qartsr("RPQ*+ET [module loss]", 1, 1, 1.0, ("equal",), loss="module"),
    _qartsr("RPQ*+ET [image loss]", 1, 1, 1.0, ("equal",), loss="image"),
    _qartsr("RPQ*+ET [published ranks]", 1, 1, 1.0, ("equal",), method="qartsr-ranks"),
)
#: Without TRQ the paper has no row with ET.
WITHOUT_TRQ = (BASELINE, RPQ_HALF, RPQ)
WITH_TRQ = (BASELINE, RPQ_HALF, RPQ, ET_HALF, ET, BOTH, *VARIANTS)


def ablation_rows(timestep: int) -> tuple[Ablation, ...]:
    """Rows of Table 4 at a timestep: TRQ is the choice of T = 1."""
    return WITH_TRQ if timestep == 1 else WITHOUT_TRQ


def ablation_grid(profile: Profile) -> list[Experiment]:
    """Table 4: full precision and the rows of `ablation_rows`, on every cell, bit width and data set."""
    grid = []
    for backbone, timestep in profile.finetune_cells:
        cells = [Experiment(backbone, timestep, *FULL_PRECISION, "", profile.seeds[0])]
        for bits in profile.ablation_bits:
            for row in ablation_rows(timestep):
                options = training_options(row.method, bits, profile, row.share) + row.options
                for seed in _seeds(profile, row.method, timestep, bits):
                    cells.append(Experiment(backbone, timestep, row.method, bits, "", seed, options, row.label))
        grid += [replace(cell, dataset=dataset) for cell in cells for dataset in profile.datasets]
    return grid


def with_stages(table: pd.DataFrame) -> pd.DataFrame:
    """Table 4's rows with the columns trq, rpq, et (0 or 1), order, loss and version; one row per version."""
    rows = {(timestep, row.label): row for timestep in (1000, 1) for row in ablation_rows(timestep)}
    frames = []
    for (timestep, label), part in table.groupby(["timestep", "method"], sort=False):
        row = rows.get((timestep, label))
        for version in row.versions if row else ("paper", "equal"):
            stages = {
                "trq": int(timestep == 1),
                "rpq": row.rpq if row else 0,
                "et": row.et if row else 0,
                "order": row.order if row else "none",
                "loss": row.loss if row else "none",
                "version": version,
            }
            frames.append(part.assign(**stages))
    return pd.concat(frames, ignore_index=True)
