"""Data sets recognised by their folder layout under DATA_ROOT: NAME/HR and NAME/LR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qartsr_lib.datasets.base import Pair, check_pair, strided
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import list_images

#: Endings that the field's archives add to the stems of partners (RealSR, DIV2K, SelfExSR).
STEM_ENDINGS = ("_LR4", "_HR", "_LR", "x4")


@dataclass(frozen=True)
class FolderDataset:
    """DATA_ROOT/<name>/HR with DATA_ROOT/<name>/LR or LR/X4.

    Attributes:
        name: folder name and name in tables.
        description: one line: what it is and where it comes from.
    """

    name: str
    description: str

    def available(self, data_root: Path | None = None) -> str | None:
        """None, or why the data set cannot be used here; a half-present one is named as such."""
        if data_root is None:
            return "DATA_ROOT is not set; give the folder that holds the data sets"
        folder = Path(data_root) / self.name
        if not folder.is_dir():
            return f"no folder {self.name} under DATA_ROOT"
        absent = [part for part in ("HR", "LR") if not (folder / part).is_dir()]
        return f"{self.name} lacks the folder {' and '.join(absent)}" if absent else None

    def pairs(self, data_root: Path | None = None, max_images: int | None = None) -> list[Pair]:
        """Pairs by equal file name, else by stem without `STEM_ENDINGS`; all are checked, then thinned.

        Raises:
            QartsrError: data set absent, folder empty, partner missing, unreadable file, wrong size.
        """
        reason = self.available(data_root)
        if reason:
            raise QartsrError(f"data set {self.name}: {reason}")
        folder = Path(data_root) / self.name
        nested = folder / "LR" / "X4"
        pairs = match_files(nested if nested.is_dir() else folder / "LR", folder / "HR")
        for pair in pairs:
            check_pair(pair)
        return strided(pairs, max_images)


def match_files(lq_folder: Path, hr_folder: Path) -> list[Pair]:
    """Pair the images of two folders; the id is the common stem.

    Raises:
        QartsrError: a folder is empty, a partner is missing, or two files claim one stem.
    """
    lq = _by_stem(lq_folder)
    hr = _by_stem(hr_folder)
    alone = [path for stem, path in {**lq, **hr}.items() if (stem in lq) != (stem in hr)]
    if alone:
        other = hr_folder if alone[0].parent == lq_folder else lq_folder
        raise QartsrError(f"{alone[0]}: has no partner in {other}; add it or remove the file")
    return [Pair(stem, lq[stem], hr[stem]) for stem in sorted(lq)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        stem = common_stem(path.stem)
        if stem in found:
            raise QartsrError(f"{path}: same name as {found[stem].name} without ending; keep one of them")
        found[stem] = path
    return found


def common_stem(stem: str) -> str:
    """`Canon_001_LR4` -> `Canon_001`, `0801x4` -> `0801`; at most one ending is cut."""
    for ending in STEM_ENDINGS:
        if stem.endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem
