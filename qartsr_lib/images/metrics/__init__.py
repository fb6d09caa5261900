"""Image quality metrics, computed from saved 8-bit PNGs: notes instead of crashes.

A metric is one `MetricSpec` row in a module of this package (see `iqa.py`). Importing this imports neither pyiqa nor
torch: readers of tables ask it which way is better.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.base.registry import Registry, outside
from qartsr_lib.images.metrics import weights as weight_files
from qartsr_lib.images.metrics.weights import WeightFile

if TYPE_CHECKING:
    import torch

Compute = Callable[..., float]
"""(SR, HR or None) -> score; images are (1, 3, H, W) RGB float32 in [0, 1] on the CPU."""
Score = tuple[float | None, str]
"""(value, "") or (None, why there is none)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricSpec:
    """One metric as the tables name it."""

    name: str  # the paper's ("CLIP-IQA")
    kind: Literal["FR", "NR"]  # compares with a reference image, or judges the SR image alone
    higher_is_better: bool
    description: str  # one line for people
    build: Callable[[Mapping[str, Path]], Compute]  # from weight files (name -> path); called once per process
    options: Mapping[str, Any] = field(default_factory=dict)  # all that changes the number: part of a run's identity
    weights: tuple[WeightFile, ...] = ()  # must be there before `build` may be called
    minimum_side: int = 1  # shorter image sides give no value
    one_thread: bool = True  # so that no bit depends on the number of threads; networks would take minutes
    ceiling: float | None = None  # the highest value, where a constant in the formula sets one that images reach


def _wrong(_: str, spec: MetricSpec, __: Mapping[str, MetricSpec]) -> str:
    return "" if spec.kind in ("FR", "NR") else f"kind {spec.kind!r} is neither 'FR' nor 'NR'"


METRICS: Registry[MetricSpec] = Registry("metric", __package__, _wrong)


def lower_is_better(name: str) -> bool:
    """Whether less is better in the metric called `name`; False for what is no metric."""
    return name in METRICS and not METRICS.get(name).higher_is_better


def available(names: Iterable[str], weights_dir: str | Path | None = None) -> dict[str, str | None]:
    """For each metric None when it can be computed, else the reason in one line; within 5 s, also without a network.

    A QartsrError for an unknown metric, or where there is no folder `weights_dir` (or of QARTSR_METRIC_WEIGHTS).
    """
    return {name: weight_files.missing_reason(METRICS.get(name).weights, weights_dir) for name in names}


def score(
    sr_png: str | Path, hr_png: str | Path | None, names: Iterable[str], weights_dir: str | Path | None = None
) -> dict[str, Score]:
    """Metric -> score of one saved 8-bit image; without a reference, full-reference metrics have no value.

    A QartsrError for an unknown metric, an unreadable image, or images of different size.
    """
    from qartsr_lib.images.image import read_image

    sr = read_image(sr_png)
    hr = None if hr_png is None else read_image(hr_png)
    if hr is not None:
        require_equal_size(sr_png, sr, hr_png, hr)
    folder = weight_files.weights_folder(weights_dir)
    return {name: _score_one(METRICS.get(name), sr, hr, folder) for name in names}


def require_equal_size(sr_path: str | Path, sr: torch.Tensor, hr_path: str | Path, hr: torch.Tensor) -> None:
    """A QartsrError that names both sizes (width x height) unless they are the same."""
    if sr.shape == hr.shape:
        return
    is_input = [4 * side for side in sr.shape[-2:]] == [*hr.shape[-2:]]
    advice = "is this the input? Give the upscaled image, or " if is_input else ""
    raise QartsrError(
        f"{sr_path} is {_size(sr)} and {hr_path} is {_size(hr)}: the sizes must be equal, and images are "
        f"never resized for a metric; {advice}check the pairing or crop the images"
    )


def identity(names: Iterable[str], weights_dir: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """What determines each metric's numbers, as plain JSON: part of the key of a run; None for a missing file."""
    folder = weight_files.weights_folder(weights_dir)
    described = {}
    for spec in map(METRICS.get, names):
        found = {file.name: weight_files.locate(file, folder) for file in spec.weights}
        described[spec.name] = {
            "options": dict(spec.options),
            "pyiqa": metadata.version("pyiqa"),
            "weights": {name: path and remembered_sha256(path) for name, path in found.items()},
        } | outside(spec.name)
    return described


def forget() -> None:
    """Drop loaded metrics and the answer about the network (after weights were added, and in tests)."""
    _loaded.cache_clear()
    weight_files.reachable.cache_clear()


def _score_one(spec: MetricSpec, sr: torch.Tensor, hr: torch.Tensor | None, folder: Path | None) -> Score:
    if spec.kind == "FR" and hr is None:
        return None, "needs a reference image"
    compute, reason = _load(spec.name, folder)
    if compute is None:
        return None, reason
    if min(sr.shape[-2:]) < spec.minimum_side:
        return None, f"image too small: {_size(sr)}, {spec.name} needs {spec.minimum_side} pixels on each side"
    try:
        with _one_thread() if spec.one_thread else contextlib.nullcontext():
            value = float(compute(sr, hr if spec.kind == "FR" else None))
    except (RuntimeError, ValueError, ArithmeticError) as error:
        # constant images make the statistics of some metrics singular; an hours-long study goes on
        _log.warning("%s failed on one image", spec.name, exc_info=error)
        return None, f"no value: {type(error).__name__} in {spec.name} (constant or degenerate image?)"
    if not math.isfinite(value):
        return None, f"no value: {spec.name} is not finite (constant or degenerate image?)"
    return value, ""


def _load(name: str, folder: Path | None) -> tuple[Compute | None, str]:
    """(scoring function, "") or (None, reason); a failure is not tried again in this process."""
    return _loaded(name, folder, METRICS.get(name).build)


@functools.cache
def _loaded(name: str, folder: Path | None, _: object) -> tuple[Compute | None, str]:
    """_: what builds it, another one where a notebook has registered the metric again."""
    spec = METRICS.get(name)
    reason = weight_files.missing_reason(spec.weights, folder)
    if reason is not None:
        return None, reason
    try:
        return spec.build({file.name: weight_files.obtain(file, folder) for file in spec.weights}), ""
    except QartsrError as error:
        return None, str(error)
    except Exception as error:  # a damaged file makes the loaders raise almost anything
        missing = isinstance(error, ImportError)
        if not spec.weights and not missing:
            raise
        _log.warning("%s cannot be loaded", name, exc_info=error)
        if missing:
            package = error.name or error
            return None, f"cannot be loaded: the package {package} is missing; install the pinned dependencies"
        files = " and ".join(file.name for file in spec.weights)
        return None, f"weights damaged: {files} cannot be loaded ({type(error).__name__}); replace the file"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
