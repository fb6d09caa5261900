"""The noise floor: how far a number moves when nothing but rounding differs, as `noise_measurement` found it.

results/noise_floor.csv holds, for each kind of method, bit width and quantity, the largest range (highest
minus lowest) over several ways of rounding. A tolerance is `FACTOR` times it: four draws of a normal
distribution have a mean range of 2.06 standard deviations, and the difference of two draws exceeds
2 x 2.06 = 4.1 of them, 2.9 of its own, in 0.4 % of all cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError

FACTOR = 2.0
#: Two numbers that are equal to the seventh digit, which is where tables end, are equal.
DIGITS = 1e-6
STATIC, TRAINED = "static", "trained"


def floor_file(results: Path | None = None) -> Path:
    """noise_floor.csv in the folder of all results."""
    return (results or paths.home() / "results") / "noise_floor.csv"


@dataclass(frozen=True)
class Floor:
    """Measured floors, and the tolerance that follows from them.

    Attributes:
        rows: (kind, bits, quantity) -> {"table", "image", "relative"}.
    """

    rows: Mapping[tuple[str, str, str], Mapping[str, float]]

    @classmethod
    def read(cls, path: Path) -> Floor:
        """From a file that `measure` filled.

        Raises:
            QartsrError: absent, or another file.
        """
        try:
            frame = pd.read_csv(path)
            keys = zip(frame["kind"], frame["bits"], frame["quantity"], strict=True)
            return cls(dict(zip(keys, frame[["table", "image", "relative"]].to_dict("records"), strict=True)))
        except FileNotFoundError as error:
            raise QartsrError(
                f"{path}: no noise floor; python -m tests.benchmarks.compare --measure-floor makes it"
            ) from error
        except (KeyError, ValueError) as error:
            raise QartsrError(f"{path}: is not a noise floor; restore it from git or measure it again") from error

    def measured(self, quantity: str) -> bool:
        """Whether the quantity has a floor of its own at any bit width."""
        return any(key[2] == quantity for key in self.rows)

    def tolerance(self, kind: str, bits: str, quantity: str, level: str, size: float) -> float:
        """Largest difference of two runs that rounding explains.

        A bit width that was not measured takes the next lower one, which is noisier, else the lowest
        there is. A quantity that was not measured takes the upper quartile of the relative floors of
        its bit width.

        Args:
            kind: STATIC or TRAINED.
            level: "table" (a mean over images) or "image".
            size: of the number.
        """
        widths = {key[1] for key in self.rows if key[0] == kind}
        if not widths:
            raise ValueError(f"no floor of kind {kind!r}")
        width = _nearest(bits, widths)
        own = self.rows.get((kind, width, quantity))
        if own is not None:
            return FACTOR * own[level] + DIGITS * size
        relative = [row["relative"] for key, row in self.rows.items() if key[:2] == (kind, width)]
        return (FACTOR * float(np.nanquantile(relative, 0.75)) + DIGITS) * size


def _nearest(bits: str, widths: set[str]) -> str:
    """`bits` or the next lower of `widths`, else the lowest."""
    order = sorted(widths, key=_activation_bits, reverse=True)
    return next((width for width in order if _activation_bits(width) <= _activation_bits(bits)), order[-1])


def _activation_bits(bits: str) -> int:
    return int(bits.rpartition("A")[2])
