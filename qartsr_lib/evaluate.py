"""From folders of saved images to a long table of metric values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qartsr_lib.atomic import write_atomically
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import list_images, read_image
from qartsr_lib.metrics import METRICS, score
from qartsr_lib.metrics.scoring import require_equal_size
from qartsr_lib.progress import progress

COLUMNS = ["image", "metric", "value", "note"]
_SUFFIXES = re.compile(r"(?<=.)(?:_LR4|_HR|x4)+$")

Pairs = Sequence[tuple[Path, Path]]


def pair_folders(sr_dir: str | Path, hr_dir: str | Path) -> list[tuple[Path, Path]]:
    """Match every image in `sr_dir` with its reference in `hr_dir`.

    An equal file name wins; otherwise stems are compared after `_LR4`, `_HR` and `x4` at their end
    are removed on both sides (Canon_001_LR4.png - Canon_001_HR.png). References without an SR image
    are left out, so that a part of a data set can be evaluated.

    Returns:
        (sr, hr) paths, sorted by the SR file's name.

    Raises:
        QartsrError: a folder is missing or empty, an image has no reference, more than one
            reference fits, or two images fit the same reference.
    """
    references = list_images(hr_dir)
    by_name = {path.name: path for path in references}
    by_stem: dict[str, list[Path]] = {}
    for path in references:
        by_stem.setdefault(_bare_stem(path), []).append(path)

    pairs, taken = [], {}
    for sr in list_images(sr_dir):
        hr = by_name.get(sr.name) or _only_match(sr, by_stem.get(_bare_stem(sr), []), hr_dir)
        if hr in taken:
            raise QartsrError(f"{taken[hr]} and {sr} both belong to the reference {hr.name}; remove one of them")
        taken[hr] = sr
        pairs.append((sr, hr))
    return pairs


def _bare_stem(path: Path) -> str:
    return _SUFFIXES.sub("", path.stem)


def _only_match(sr: Path, candidates: list[Path], hr_dir: str | Path) -> Path:
    if not candidates:
        raise QartsrError(
            f"{sr}: no image in {hr_dir} has the same name, or the same stem without _LR4, _HR, x4; "
            "rename it or add its reference"
        )
    if len(candidates) > 1:
        names = " and ".join(path.name for path in candidates)
        raise QartsrError(f"{sr}: more than one reference fits ({names} in {hr_dir}); remove or rename one")
    return candidates[0]


def score_pair(
    sr_path: str | Path, hr_path: str | Path | None, names: Iterable[str], weights_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """The rows of one image, for a cache that works image by image.

    Returns:
        One dict per metric with the keys of COLUMNS; value is a float, or NaN with the reason in note.

    Raises:
        QartsrError: see `metrics.score`.
    """
    scores = score(sr_path, hr_path, names, weights_dir)
    image = Path(sr_path).name
    return [
        {"image": image, "metric": name, "value": math.nan if value is None else value, "note": note}
        for name, (value, note) in scores.items()
    ]


def evaluate_pairs(pairs: Pairs, names: Sequence[str], weights_dir: str | Path | None = None) -> pd.DataFrame:
    """Score saved images against their references.

    All pairs are read and compared in size before the first metric runs, so that a bad file is
    reported at once and not after an hour.

    Args:
        pairs: (SR file, HR file).
        names: metric names; a repeated name counts once.
        weights_dir: folder of metric weights, instead of QARTSR_METRIC_WEIGHTS.

    Returns:
        Long frame with COLUMNS: image (the SR file's name), metric, value (float64, NaN when
        unavailable), note (the reason, else ""). Rows in the order of `pairs`, then of `names`.

    Raises:
        QartsrError: unknown metric, unreadable image, images of different size.
    """
    names = _known(names)
    for sr_path, hr_path in pairs:
        require_equal_size(sr_path, read_image(sr_path), hr_path, read_image(hr_path))
    rows = [row for sr, hr in progress(pairs, "metrics") for row in score_pair(sr, hr, names, weights_dir)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": "float64"})


def evaluate_folders(
    sr_dir: str | Path,
    hr_dir: str | Path,
    names: Sequence[str],
    out_csv: str | Path,
    weights_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Pair two folders, score them, and write the frame of `evaluate_pairs` as CSV, atomically.

    An unavailable metric has an empty value and a note; that is no error.

    Raises:
        QartsrError: see `pair_folders` and `evaluate_pairs`; the output cannot be written.
    """
    names = _known(names)
    if Path(out_csv).is_dir():
        raise QartsrError(f"{out_csv}: is a folder; name a CSV file to write")
    frame = evaluate_pairs(pair_folders(sr_dir, hr_dir), names, weights_dir)
    write_atomically(out_csv, lambda temporary: frame.to_csv(temporary, index=False))
    return frame


def _known(names: Sequence[str]) -> list[str]:
    """`names` without repetitions; a QartsrError for none or an unknown one."""
    if not names:
        raise QartsrError(f"no metric named; choose from {', '.join(METRICS)}")
    return [METRICS.get(name).name for name in dict.fromkeys(names)]
