"""Score images: availability, one cached scoring function per metric, notes instead of crashes."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.metrics import weights as weight_files
from qartsr_lib.images.metrics.base import METRICS, Compute, MetricSpec

if TYPE_CHECKING:
    import torch

Score = tuple[float | None, str]
"""(value, "") or (None, why there is none)."""

_log = logging.getLogger(__name__)


def available(names: Iterable[str], weights_dir: str | Path | None = None) -> dict[str, str | None]:
    """For each metric None when it can be computed, else the reason in one line.

    Takes less than 5 s for all metrics together, also without a network; creates no metric.

    Args:
        names: names in METRICS.
        weights_dir: folder of weight files, instead of the one that QARTSR_METRIC_WEIGHTS names.

    Raises:
        QartsrError: unknown metric, or no such folder.
    """
    return {name: weight_files.missing_reason(METRICS.get(name), weights_dir) for name in names}


def score(
    sr_png: str | Path,
    hr_png: str | Path | None,
    names: Iterable[str],
    weights_dir: str | Path | None = None,
) -> dict[str, Score]:
    """Score one saved image against its reference.

    Args:
        sr_png: the 8-bit image to judge.
        hr_png: the reference; None leaves full-reference metrics without a value.
        names: names in METRICS.
        weights_dir: see `available`.

    Returns:
        metric name -> (value, "") or (None, reason).

    Raises:
        QartsrError: unknown metric, unreadable image, or images of different size.
    """
    from qartsr_lib.images.image import read_image

    sr = read_image(sr_png)
    hr = None if hr_png is None else read_image(hr_png)
    require_equal_size(sr_png, sr, hr_png, hr)
    return {name: _score_one(METRICS.get(name), sr, hr, weights_dir) for name in names}


def require_equal_size(
    sr_path: str | Path, sr: torch.Tensor, hr_path: str | Path | None, hr: torch.Tensor | None
) -> None:
    """Raise a QartsrError that names both sizes (width x height) unless they are the same."""
    if hr is not None and sr.shape != hr.shape:
        is_input = [4 * side for side in sr.shape[-2:]] == [*hr.shape[-2:]]
        advice = "is this the input? Give the upscaled image, or " if is_input else ""
        raise QartsrError(
            f"{sr_path} is {_size(sr)} and {hr_path} is {_size(hr)}: the sizes must be equal, and images are "
            f"never resized for a metric; {advice}check the pairing or crop the images"
        )


def identity(names: Iterable[str], weights_dir: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """What determines each metric's numbers, as plain JSON: part of the key of a run.

    Holds the options, pyiqa's version and the checksum of each weight file (None while missing).
    """
    folder = weight_files.weights_folder(weights_dir)
    described = {}
    for name in names:
        spec = METRICS.get(name)
        described[name] = {
            "options": dict(spec.options),
            "pyiqa": metadata.version("pyiqa"),
            "weights": {file.name: _checksum(weight_files.locate(file, folder)) for file in spec.weights},
        }
    return described


def weights_table() -> pd.DataFrame:
    """The weight files of all metrics: columns metric, file, url."""
    rows = [(name, file.name, file.url) for name in METRICS for file in METRICS.get(name).weights]
    return pd.DataFrame(rows, columns=["metric", "file", "url"])


def forget() -> None:
    """Drop loaded metrics and the answer about the network (after weights were added, and in tests)."""
    _load.cache_clear()
    weight_files.reachable.cache_clear()


def _score_one(spec: MetricSpec, sr: torch.Tensor, hr: torch.Tensor | None, weights_dir: str | Path | None) -> Score:
    if spec.kind == "FR" and hr is None:
        return None, "needs a reference image"
    folder = weight_files.weights_folder(weights_dir)
    compute, reason = _load(spec.name, None if folder is None else str(folder))
    if compute is None:
        return None, reason
    if min(sr.shape[-2:]) < spec.minimum_side:
        return None, f"image too small: {_size(sr)}, {spec.name} needs {spec.minimum_side} pixels on each side"
    try:
        with _one_thread() if spec.one_thread else contextlib.nullcontext():
            value = compute(sr, hr)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        # constant images make the statistics of some metrics singular; an hours-long study goes on
        _log.warning("%s failed on one image", spec.name, exc_info=error)
        return None, f"no value: {type(error).__name__} in {spec.name} (constant or degenerate image?)"
    if not math.isfinite(value):
        return None, f"no value: {spec.name} is not finite (constant or degenerate image?)"
    return value, ""


@functools.cache
def _load(name: str, folder: str | None) -> tuple[Compute | None, str]:
    """(scoring function, "") or (None, reason); a failure is not tried again in this process."""
    spec = METRICS.get(name)
    reason = weight_files.missing_reason(spec, folder)
    if reason is not None:
        return None, reason
    try:
        paths = {file.name: weight_files.obtain(file, folder) for file in spec.weights}
        return spec.build(paths), ""
    except QartsrError as error:
        return None, str(error)
    except ImportError as error:
        _log.warning("%s cannot be loaded", name, exc_info=error)
        return None, f"cannot be loaded: the package {error.name or error} is missing; install the pinned dependencies"
    except Exception as error:  # a damaged file makes the loaders raise almost anything
        if not spec.needs_weights:
            raise
        _log.warning("%s cannot be loaded", name, exc_info=error)
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


def _checksum(path: Path | None) -> str | None:
    return None if path is None else remembered_sha256(path)


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
