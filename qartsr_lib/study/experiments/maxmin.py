"""Notebooks 00 and 02. Which cells the tables of full precision and of MaxMin have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from qartsr_lib.methods.maxmin import PARTS
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.paper import BICUBIC, BICUBIC_LABEL
from qartsr_lib.study.profiles import Profile

#: Label in tables -> options of MaxMin; each turns one knob of the shared setting.
KNOBS: dict[str, tuple[tuple[str, object], ...]] = {
    "MaxMin": (),
    "MaxMin [float bias]": (("bias_bits", "none"),),
    "MaxMin [bias at b bits]": (("bias_bits", "w"),),
    "MaxMin [attention products at b bits]": (("attention_bits", "a"),),
    "MaxMin [first-batch ranges]": (("ranges", "first-batch"),),
    "MaxMin [rounded zero-point]": (("zero_point", "integer"),),
}


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
