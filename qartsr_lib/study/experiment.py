"""What one number is about: backbone, timestep, method, bits, data set, seed."""

from __future__ import annotations

from dataclasses import dataclass

FULL_PRECISION = ("fp", "W32A32")


@dataclass(frozen=True)
class Experiment:
    """One cell of a table for one seed.

    Attributes:
        backbone: name in `backbones.BACKBONES`.
        timestep: label T.
        method: name in `methods.METHODS`.
        bits: such as "W4A4"; "W32A32" with method "fp".
        dataset: name in `datasets.DATASETS`.
        seed: of the method.
        options: the method's own options as (name, value) pairs.
        label: name in tables; the method's own when empty. Needed to tell variants apart.
    """

    backbone: str
    timestep: int
    method: str
    bits: str
    dataset: str
    seed: int = 0
    options: tuple[tuple[str, object], ...] = ()
    label: str = ""
