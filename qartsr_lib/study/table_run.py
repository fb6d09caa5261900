"""What a sweep gives: a table, what stands behind it, and the upscaled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import results
from qartsr_lib.study.experiment import Experiment


@dataclass
class TableRun:
    """What `study.run_table` returns.

    Attributes:
        profile: profile name.
        table: one row per cell and metric (`result_cells.COLUMNS`).
        per_image: long, `result_cells.PER_IMAGE_COLUMNS` and "note".
        records: provenance, one per run_id.
        skipped: data set -> why it is not in this run.
        histories: trained experiment -> its records, one per training step.
    """

    profile: str
    table: pd.DataFrame
    per_image: pd.DataFrame
    records: list[dict]
    skipped: dict[str, str]
    images: dict[tuple[Experiment, str], Path] = field(repr=False)
    histories: dict[Experiment, list[dict[str, float]]] = field(repr=False, default_factory=dict)

    def write(self, name: str, keep: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Merge into results/<profile>/<name>.csv, with per-image values and run records.

        Args:
            keep: this run is a part of the table: other cells stay as they are, see `results.write_table`.

        Returns:
            (table, per-image values): this run's, or, of a part, those of the whole table.
        """
        results.write_table(self.profile, name, self.table, self.per_image, self.records, keep)
        return results.read_run(self.profile, name) if keep else (self.table, self.per_image)

    def png_path(self, experiment: Experiment, image_id: str) -> Path:
        """The upscaled image, as it was scored.

        Raises:
            QartsrError: not part of this run.
        """
        if (experiment, image_id) not in self.images:
            raise QartsrError(f"{image_id}: no such image of {experiment.dataset} in this run; per_image lists the ids")
        return self.images[experiment, image_id]
