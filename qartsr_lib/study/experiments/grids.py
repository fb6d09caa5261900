"""Which cells every table has: full precision and MaxMin (notebooks 00 and 02), Tables 3 and 4 (04, 05, 11, 12, 14)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.maxmin import PARTS
from qartsr_lib.methods.qartsr import QArtSR
from qartsr_lib.methods.rates import Options, training_options
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL
from qartsr_lib.study.profiles import Profile

#: Label in tables -> options of MaxMin; each turns one knob of the shared setting.
KNOBS: dict[str, Options] = {
    "MaxMin": (),
    "MaxMin [float bias]": (("bias_bits", "none"),),
    "MaxMin [bias at b bits]": (("bias_bits", "w"),),
    "MaxMin [attention products at b bits]": (("attention_bits", "a"),),
    "MaxMin [first-batch ranges]": (("ranges", "first-batch"),),
    "MaxMin [rounded zero-point]": (("zero_point", "integer"),),
    "MaxMin [least-squares ranges]": (("ranges", "least-squares"),),
    "MaxMin [least-squares ranges, rounded zero-point]": (("ranges", "least-squares"), ("zero_point", "integer")),
}
#: Bit widths and T at which trained methods are repeated over all seeds.
SEEDED_BITS, SEEDED_TIMESTEP = ("W4A4", "W2A2"), 1


def full_precision_grid(profile: Profile) -> list[Experiment]:
    """Bicubic interpolation, then every backbone at every timestep in full precision, on every data set."""
    cells = product(profile.backbones, profile.timesteps, profile.datasets)
    return bicubic_rows(profile) + [Experiment(*cell, *FULL_PRECISION, dataset) for *cell, dataset in cells]


def bicubic_rows(profile: Profile) -> list[Experiment]:
    """Bicubic interpolation on every data set; the timestep has no meaning."""
    return [Experiment(BICUBIC, 1, *FULL_PRECISION, dataset, label=BICUBIC_LABEL) for dataset in profile.datasets]


def part_grid(profile: Profile, bits: Sequence[str]) -> list[Experiment]:
    """MaxMin on one part of the network at a time, every backbone, timestep and data set of the profile."""
    cells = product(profile.backbones, profile.timesteps, bits, PARTS, profile.datasets)
    return [Experiment(name, timestep, part, width, dataset) for name, timestep, width, part, dataset in cells]


def knob_grid(profile: Profile, backbone: str, timesteps: Sequence[int], bits: Sequence[str]) -> list[Experiment]:
    """MaxMin with one knob turned at a time (KNOBS), on one backbone and every data set of the profile."""
    return [
        Experiment(backbone, timestep, "maxmin", width, dataset, options=options, label=label)
        for timestep, width, (label, options), dataset in product(timesteps, bits, KNOBS.items(), profile.datasets)
    ]


#: (method, bits, options, label) of one row of Tables 3 and 4.
Row = tuple[str, str, Options, str]


def on_cells(profile: Profile, rows: Callable[[int], Iterable[Row]]) -> list[Experiment]:
    """Full precision and `rows`(T) on every cell of Tables 3 and 4 and every data set; all seeds where they decide."""
    grid = []
    for cell in profile.finetune_models:
        grid.append(Experiment(*cell, *FULL_PRECISION, "", profile.seeds[0]))
        for method, bits, options, label in rows(cell[1]):
            repeated = METHODS.get(method).trains and cell[1] == SEEDED_TIMESTEP and bits in SEEDED_BITS
            seeds = profile.seeds if repeated else profile.seeds[:1]
            grid += [Experiment(*cell, method, bits, "", seed, options, label) for seed in seeds]
    return [replace(experiment, dataset=dataset) for experiment, dataset in product(grid, profile.datasets)]


def at_seeded_timestep(profile: Profile) -> Profile:
    """`profile` with those cells of Tables 3 and 4 alone that have T = SEEDED_TIMESTEP."""
    cells = tuple(cell for cell in profile.finetune_models if cell[1] == SEEDED_TIMESTEP)
    return replace(profile, finetune_models=cells)


def comparison_grid(profile: Profile) -> list[Experiment]:
    """Table 3: bicubic interpolation; full precision and every method on every cell, bit width and data set."""
    models = product(profile.finetune_bits, profile.methods)
    rows = [(method, bits, training_options(method, bits, profile), "") for bits, method in models]
    grid = on_cells(profile, lambda _: rows)
    return (bicubic_rows(profile) if grid else []) + grid


def budget_grid(profile: Profile, factors: Sequence[int]) -> list[Experiment]:
    """Whether longer training closes the gap to full precision: the profile's budget and multiples of it, one seed.

    At the highest bit width of Table 3 and T = SEEDED_TIMESTEP; rates stay as they were chosen for the plain budget.
    """
    bits, trained = _highest_bits(profile), [method for method in profile.methods if METHODS.get(method).trains]
    rows = [
        (method, bits, training_options(method, bits, profile, factor), budget_label(METHODS.get(method).label, factor))
        for factor, method in product((1, *factors), trained)
    ]
    return on_cells(replace(at_seeded_timestep(profile), seeds=profile.seeds[:1]), lambda _: rows)


def _highest_bits(profile: Profile) -> str:
    if not profile.finetune_bits:
        raise QartsrError(f"finetune_bits of profile {profile.name!r} is empty, and this notebook trains at its first")
    return profile.finetune_bits[0]


def budget_label(label: str, factor: int) -> str:
    """Name in the table of a method (by its own there) that was trained for `factor` times the budget."""
    return label if factor == 1 else f"{label} [{factor}x images]"


#: Image losses that notebook 12 compares, the paper's first.
IMAGE_LOSSES = ("lpips+mse", "vae-features+mse")


def loss_grid(profile: Profile) -> list[Experiment]:
    """QArtSR with each of IMAGE_LOSSES, all seeds, at the highest bit width of Table 3 and T = SEEDED_TIMESTEP."""
    bits = _highest_bits(profile)
    rows = [
        ("qartsr", bits, training_options("qartsr", bits, replace(profile, image_loss=loss)), loss_label(loss))
        for loss in IMAGE_LOSSES
    ]
    return on_cells(at_seeded_timestep(profile), lambda _: rows)


def loss_label(loss: str) -> str:
    """Name in the table of QArtSR with an image loss."""
    return f"{METHODS.get('qartsr').label} [{loss}]"


@dataclass(frozen=True)
class Ablation:
    """One row of Table 4."""

    label: str  # name in the table, unique
    method: str  # in METHODS
    rpq: int  # whether the stage is there
    et: int
    share: float  # of the profile's budget
    versions: tuple[str, ...] = ("equal",)  # "paper" (ET adds steps), "equal" (equal steps), or both
    order: str = "reverse"  # of RPQ's modules
    loss: str = "both"  # of RPQ; "module" and "image" are the halves of Eq. (8)

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

    def rows(timestep: int) -> Iterable[Row]:
        for bits, row in product(profile.ablation_bits, WITH_TRQ if timestep == 1 else WITHOUT_TRQ):
            yield row.method, bits, training_options(row.method, bits, profile, row.share) + row.options, row.label

    return on_cells(profile, rows)


def with_stages(table: pd.DataFrame) -> pd.DataFrame:
    """Table 4's rows with the columns trq, rpq, et (0 or 1), order, loss and version; one row per version."""
    rows, frames = {row.label: row for row in WITH_TRQ}, []
    for (timestep, label), part in table.groupby(["timestep", "method"], sort=False):
        row = rows.get(label, BASELINE)  # full precision has no stages either
        stages = {"trq": int(timestep == 1), "rpq": row.rpq, "et": row.et, "order": row.order, "loss": row.loss}
        frames += [part.assign(**stages, version=version) for version in row.versions]
    return pd.concat(frames, ignore_index=True)
