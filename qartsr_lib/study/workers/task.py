"""What runs on a worker: all images of one quantized model, by an ordinary evaluator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import get_worker

from qartsr_lib.base import machine, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.study.evaluator import Evaluator
from qartsr_lib.study.experiment import Experiment

Work = Sequence[tuple[Experiment, Pair]]

#: One experiment at a time, however many threads a worker has: a GPU's memory holds one.
_TURN = threading.Lock()
#: The evaluator of the task before, with its loaded backbone, and what that task was about.
_kept: list[tuple[Evaluator, dict[str, Any]]] = []


def measure_model(make: Callable[..., Evaluator], identity: dict[str, Any], work: Work) -> QartsrError | None:
    """On a worker: measure all images of one model. Problems that a user can mend are returned, not logged."""
    with _TURN:
        try:
            evaluator = _fitting(make, identity, work[0][0])
            evaluator.model_info(work[0][0])
            for experiment, pair in work:
                if _unwanted():
                    return None
                evaluator.measure(experiment, pair)
        except QartsrError as error:
            return error
    return None


def _fitting(make: Callable[..., Evaluator], identity: dict[str, Any], experiment: Experiment) -> Evaluator:
    """The evaluator of the task before where it fits, else a new one."""
    # The same model again: its entries were lost, and one that is still in memory would not be written again.
    if not _kept or _kept[0][1] == identity or identity_of(_kept[0][0], experiment) != identity:
        _kept[:] = []  # free the old one before loading
        evaluator = make()
        require_equal(identity, identity_of(evaluator, experiment), f"worker {get_worker().address} differs")
    else:
        evaluator = _kept[0][0]
    _kept[:] = [(evaluator, identity)]
    return evaluator


def _unwanted() -> bool:
    """Whether the running task was cancelled, which Dask does not interrupt."""
    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled"


def survey(device: str, token: Path) -> dict[str, Any]:
    """What a worker is, and whether it sees `token`."""
    machine.make_exact(machine.checked(device))
    return {
        "environment": provenance.environment(device),
        "source": provenance.source_sha256(),
        "sees the cache": token.is_file(),
    }


def identity_of(evaluator: Evaluator, experiment: Experiment) -> dict[str, Any]:
    """All that has to be the same here and on a worker, for its entries to be found."""
    return {
        "cache": str(evaluator.cache.root),
        "environment": evaluator.environment,
        "source": provenance.source_sha256(),
        "model": evaluator.model_key(experiment),
        "metrics": evaluator.identity,
        "metrics that are not available": evaluator.reasons,
    }


def require_equal(one: Mapping[str, Any], other: Mapping[str, Any], problem: str) -> None:
    """Raise QartsrError that names the first thing in which two nested mappings differ."""
    one, other = _flat(one), _flat(other)
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            raise QartsrError(
                f"{problem} in {name}: {one.get(name)} and {other.get(name)}; all need the same packages, files, "
                "device and threads, and a start after the last change of the code"
            )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
