"""Training losses of a table's runs, sorted for figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qartsr_lib.show.tables.settings import cell_name, cell_title
from qartsr_lib.study.cells import Measured

History = Sequence[Mapping[str, float]]


def loss_histories(run: Measured, labels: Sequence[str]) -> Iterator[tuple[str, str, dict[str, History]]]:
    """(name for files, title, label -> records of training) for every model and bit width.

    One that trained fewer than two of `labels` has nothing to compare and is left out.

    Args:
        run: of several seeds the first one's records are shown.
        labels: rows of the table, in the order of the legend.
    """
    trained: dict[tuple[str, int, str], dict[str, History]] = {}
    for experiment, history in run.histories.items():
        cell = (experiment.backbone, experiment.timestep, experiment.bits)
        trained.setdefault(cell, {}).setdefault(experiment.label, history)
    for (backbone, timestep, bits), found in trained.items():
        histories = {label: found[label] for label in labels if label in found}
        if len(histories) > 1:
            yield f"{bits}_{cell_name(backbone, timestep)}", f"{cell_title(backbone, timestep)}, {bits}", histories
