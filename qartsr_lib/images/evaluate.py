"""From folders of saved images to a long table of metric values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import check_name, check_writable, write_atomically
from qartsr_lib.base.progress import progress
from qartsr_lib.images.datasets.base import SCALE, divisible_file
from qartsr_lib.images.datasets.pairing import match_folders, named
from qartsr_lib.images.image import IMAGE_SUFFIXES, read_image
from qartsr_lib.images.metrics import METRICS, require_equal_size, score

COLUMNS = ["image", "metric", "value", "note"]
CROPPED = f"reference cropped at the right and bottom so that its sides divide by {SCALE}"


def evaluate_pairs(
    pairs: Sequence[tuple[Path, Path]],
    names: Sequence[str],
    weights_dir: Path | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Score saved images against their references, (SR file, HR file), by the metrics `names`.

    All pairs are read and compared in size first, so that a bad file is reported at once and not after an hour. Where
    an image has the size of its reference without the rows and columns by which that does not divide by four, the
    reference is cropped (as BasicSR does it), and note says so.

    Args:
        weights_dir: folder of metric weights, instead of QARTSR_METRIC_WEIGHTS.
        folder: SR files are named as they lie below it, instead of by file name.

    Returns:
        Long frame with COLUMNS, in the order of `pairs`, then of `names`: value is float64, NaN when unavailable; note
        says why, or that a value is its metric's ceiling.

    Raises:
        QartsrError: unknown metric, unreadable image, images of different size.
    """
    names = _known(names)
    work = [(sr, hr, _fitting(sr, hr)) for sr, hr in pairs]
    cropped = [hr.name for _, hr, reference in work if reference != hr]
    if cropped:
        print(f"{len(cropped)} x {CROPPED}: {named(cropped)}", file=sys.stderr)
    rows = []
    for sr, hr, reference in progress(work, "metrics"):
        image = sr.name if folder is None else sr.relative_to(folder).as_posix()
        for name, (value, note) in score(sr, reference, names, weights_dir).items():
            notes = [note, _ceiling(name, value), CROPPED if reference != hr else ""]
            rows.append((image, name, value, "; ".join(filter(None, notes))))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": "float64"})


def _ceiling(name: str, value: float | None) -> str:
    ceiling = METRICS.get(name).ceiling
    at_it = ceiling is not None and value is not None and value > ceiling - 0.005
    return f"{ceiling:g} is the most that {name} gives: the images are equal or nearly so" if at_it else ""


def _fitting(sr_path: Path, hr_path: Path) -> Path:
    """The reference, or a file with the part of it that the SR image shows; raises for any other size."""
    sr, hr = read_image(sr_path), read_image(hr_path)
    if sr.shape != hr.shape and [*sr.shape[-2:]] == [side // SCALE * SCALE for side in hr.shape[-2:]]:
        return divisible_file(hr_path)
    require_equal_size(sr_path, sr, hr_path, hr)
    return hr_path


def evaluate_folders(
    sr_dir: Path, hr_dir: Path, names: Sequence[str], out: Path, weights_dir: Path | None = None
) -> pd.DataFrame:
    """Pair folders by `match_folders`, write the frame of `evaluate_pairs` as CSV; stderr names what is left out."""
    names = _known(names)
    check_name(out, "--out")
    if out.is_dir() or out.suffix.lower() in IMAGE_SUFFIXES:
        kind = "is a folder" if out.is_dir() else "has the ending of an image"
        raise QartsrError(f"{out}: {kind}; name a CSV file to write")
    check_writable(out.parent, str(out))
    found = match_folders(sr_dir, hr_dir)
    for remark in found.remarks():
        print(remark, file=sys.stderr)
    frame = evaluate_pairs(found.pairs, names, weights_dir, sr_dir)
    write_atomically(out, lambda temporary: frame.to_csv(temporary, index=False))
    return frame


def _known(names: Sequence[str]) -> list[str]:
    """`names` without repetitions; a QartsrError for none or an unknown one."""
    if not names:
        raise QartsrError(f"no metric named; choose from {', '.join(METRICS)}")
    return [METRICS.get(name).name for name in dict.fromkeys(names)]
