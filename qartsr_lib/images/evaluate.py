"""From folders of saved images to a long table of metric values."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qartsr_lib.base.atomic import write_atomically
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import SCALE
from qartsr_lib.images.datasets.central import divisible_file
from qartsr_lib.images.datasets.pairing import SHOWN, match_folders
from qartsr_lib.images.image import IMAGE_SUFFIXES, read_image
from qartsr_lib.images.metrics import METRICS, score
from qartsr_lib.images.metrics.scoring import require_equal_size

COLUMNS = ["image", "metric", "value", "note"]
CROPPED = f"reference cropped at the right and bottom so that its sides divide by {SCALE}"

Pairs = Sequence[tuple[Path, Path]]


def score_pair(
    sr_path: str | Path, hr_path: str | Path | None, names: Iterable[str], weights_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """The rows of one image, for a cache that works image by image.

    Returns:
        One dict per metric with the keys of COLUMNS; value is a float, or NaN with the reason in note. A value at
        its metric's ceiling has a note too.

    Raises:
        QartsrError: see `metrics.score`.
    """
    scores = score(sr_path, hr_path, names, weights_dir)
    image = Path(sr_path).name
    return [
        {"image": image, "metric": name, "value": math.nan if value is None else value, "note": note or at_ceiling}
        for name, (value, note) in scores.items()
        for at_ceiling in [_ceiling(name, value)]
    ]


def _ceiling(name: str, value: float | None) -> str:
    ceiling = METRICS.get(name).ceiling
    at_it = ceiling is not None and value is not None and value > ceiling - 0.005
    return f"{ceiling:g} is the most that {name} gives: the images are equal or nearly so" if at_it else ""


def evaluate_pairs(
    pairs: Pairs, names: Sequence[str], weights_dir: str | Path | None = None, folder: str | Path | None = None
) -> pd.DataFrame:
    """Score saved images against their references.

    All pairs are read and compared in size before the first metric runs, so that a bad file is
    reported at once and not after an hour. Where an image has the size of its reference without the rows and columns
    by which that does not divide by four, the reference is cropped (as BasicSR does it), and note says so.

    Args:
        pairs: (SR file, HR file).
        names: metric names; a repeated name counts once.
        weights_dir: folder of metric weights, instead of QARTSR_METRIC_WEIGHTS.
        folder: SR files are named as they lie below it, instead of by file name.

    Returns:
        Long frame with COLUMNS: image (the SR file's name), metric, value (float64, NaN when
        unavailable), note (the reason, else ""). Rows in the order of `pairs`, then of `names`.

    Raises:
        QartsrError: unknown metric, unreadable image, images of different size.
    """
    names = _known(names)
    work = [(sr, hr, _fitting(sr, hr)) for sr, hr in pairs]
    cropped = [Path(hr).name for _, hr, reference in work if reference != hr]
    if cropped:
        print(f"{len(cropped)} x {CROPPED}: {', '.join(cropped[:SHOWN])}", file=sys.stderr)
    rows = []
    for sr, hr, reference in progress(work, "metrics"):
        for row in score_pair(sr, reference, names, weights_dir):
            notes = [row["note"], CROPPED if reference != hr else ""]
            name = row["image"] if folder is None else Path(sr).relative_to(folder).as_posix()
            rows.append(row | {"image": name, "note": "; ".join(note for note in notes if note)})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": "float64"})


def _fitting(sr_path: Path, hr_path: Path) -> Path:
    """The reference, or a file with the part of it that the SR image shows; raises for any other size."""
    sr, hr = read_image(sr_path), read_image(hr_path)
    if sr.shape != hr.shape and [*sr.shape[-2:]] == [side // SCALE * SCALE for side in hr.shape[-2:]]:
        return divisible_file(hr_path)
    require_equal_size(sr_path, sr, hr_path, hr)
    return hr_path


def evaluate_folders(
    sr_dir: str | Path,
    hr_dir: str | Path,
    names: Sequence[str],
    out_csv: str | Path,
    weights_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Pair two folders, score them, and write the frame of `evaluate_pairs` as CSV, atomically.

    An unavailable metric has an empty value and a note; that is no error. Files that are left out are named on stderr.

    Raises:
        QartsrError: see `match_folders` and `evaluate_pairs`; the output cannot be written.
    """
    names = _known(names)
    _check_output(Path(out_csv))
    found = match_folders(sr_dir, hr_dir)
    for remark in found.remarks():
        print(remark, file=sys.stderr)
    frame = evaluate_pairs(found.pairs, names, weights_dir, sr_dir)
    write_atomically(out_csv, lambda temporary: frame.to_csv(temporary, index=False))
    return frame


def _check_output(path: Path) -> None:
    """Refuse now what cannot be written after an hour of scoring."""
    if path.is_dir():
        raise QartsrError(f"{path}: is a folder; name a CSV file to write")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise QartsrError(f"{path}: has the ending of an image; name a CSV file to write")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise QartsrError(f"{path}: cannot be written in {place}; name a CSV file in another folder")


def _known(names: Sequence[str]) -> list[str]:
    """`names` without repetitions; a QartsrError for none or an unknown one."""
    if not names:
        raise QartsrError(f"no metric named; choose from {', '.join(METRICS)}")
    return [METRICS.get(name).name for name in dict.fromkeys(names)]
