"""Data sets recognised by their folders under DATA_ROOT, as this study and the published archives name them."""

from __future__ import annotations

import glob
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, check_pair, divisible_file, strided
from qartsr_lib.images.datasets.pairing import bare_stem, match
from qartsr_lib.images.image import IMAGE_SUFFIXES

#: (LR files, HR files); {} is the data set's folder. The first row that has both counts, and case does not.
LAYOUTS = (
    ("{}/LR/X4/*", "{}/HR/*"),
    ("{}/LR/*", "{}/HR/*"),
    ("{}/test_LR/*", "{}/test_HR/*"),  # StableSR's crops of RealSR and DRealSR
    ("{}/Test_x4/test_LR/*", "{}/Test_x4/test_HR/*"),  # DRealSR
    ("{}/lq/*", "{}/gt/*"),  # StableSR's crops of DIV2K
    ("{}/LRbicx4/*", "{}/GTmod12/*"),  # BasicSR
    ("{}/LRbicx4/*", "{}/GTmod4/*"),
    ("{}/LR_bicubic/X4/*", "{}/HR/*"),  # EDSR's benchmarks
    ("{}/image_SRF_4/*_LR.*", "{}/image_SRF_4/*_HR.*"),  # SelfExSR
    ("{}/*/Test/4/*_LR4.*", "{}/*/Test/4/*_HR.*"),  # RealSR: Canon and Nikon
    ("{}_LR_bicubic/X4/*", "{}_HR/*"),  # DIV2K_valid
)


@dataclass(frozen=True)
class FolderDataset:
    """A data set in one of the LAYOUTS, in DATA_ROOT or a folder of it (StableSR_testsets/RealSRVal_crop128)."""

    name: str  # of its folder, and in tables
    description: str  # one line: what it is and where it comes from
    published: tuple[str, ...] = ()  # other names that its folder has in archives; `name` goes before them

    @property
    def _names(self) -> tuple[str, ...]:
        return self.name, *self.published

    def available(self, data_root: Path | None = None) -> str | None:
        """None, or why the data set cannot be used here; a half-present one is named as such."""
        if data_root is None:
            return "DATA_ROOT is not set; give the folder that holds the data sets"
        found = self._find(Path(data_root))
        if len(found) > 1:
            return f"{self.name} is there as {' and as '.join(found)}; rename the folder to use to {self.name}"
        if found:
            return None
        there = [name for name in self._names if _glob(Path(data_root), name)]
        advice = f"put the images into {self.name}/HR and {self.name}/LR, or use a layout that README names"
        if not there:
            return f"no folder {' or '.join(self._names)} under DATA_ROOT; {advice}"
        absent = [part for part in ("HR", "LR") if not _images(Path(data_root), f"{there[0]}/{part}/*")]
        return f"{there[0]} lacks the folder {' and '.join(absent)} with images; {advice}"

    def pairs(self, data_root: Path | None = None, max_images: int | None = None) -> list[Pair]:
        """Pairs by `pairing.match`; all are checked (a QartsrError names the file), then thinned.

        References whose sides do not divide by four are cropped as BasicSR crops them.
        """
        reason = self.available(data_root)
        if reason:
            raise QartsrError(f"data set {self.name}: {reason}")
        ((lq, hr),) = self._find(Path(data_root)).values()
        pairs = _match_files(lq, hr)
        to_crop = {pair.id for pair in pairs if not check_pair(pair)}
        if to_crop:
            _say(f"{self.name}: {len(to_crop)} reference(s) cropped at the right and bottom so that sides divide by 4")
        chosen = strided(pairs, max_images)
        return [Pair(pair.id, pair.lq, divisible_file(pair.hr)) if pair.id in to_crop else pair for pair in chosen]

    def _find(self, root: Path) -> dict[str, tuple[list[Path], list[Path]]]:
        """Folder below `root` -> (LR files, HR files) of each copy; of that in `name` alone where there is one."""
        begun = {path.parent for name in self._names for top in ("", "*/") for path in _glob(root, f"{top}{name}*")}
        parents = sorted(parent.relative_to(root) for parent in begun | {root})
        found = {}
        for place in [(parent / name).as_posix() for parent in parents for name in self._names]:
            rows = ([side.format(glob.escape(place)) for side in row] for row in LAYOUTS)
            sides = ((_images(root, lq), _images(root, hr)) for lq, hr in rows)
            files = next(((lq, hr) for lq, hr in sides if lq and hr), None)
            if files:
                found[place] = files
            if found and place == self.name:
                break
        return found


def _match_files(lq: list[Path], hr: list[Path]) -> list[Pair]:
    """The pairs of a data set, sorted by id: the reference's stem without endings, where those are unique."""
    found = match(*({path: path.name for path in paths} for paths in (lq, hr)))
    alone = [(path, f"{hr[0].parent} ({why})") for path, why in found.left_out.items()]
    alone += [(path, lq[0].parent) for path in found.unused]
    if alone:
        raise QartsrError(f"{alone[0][0]}: has no partner in {alone[0][1]}; add it or remove the file")
    taken = Counter(bare_stem(path.stem) for path in hr)
    pairs: dict[str, Pair] = {}
    for files in found.pairs:
        stem, bare = files[1].stem, bare_stem(files[1].stem)
        pair = Pair(bare if taken[bare] == 1 else stem, *files)
        if pair.id in pairs:
            raise QartsrError(f"{pair.hr}: same name as {pairs[pair.id].hr.name} without ending; rename one of them")
        pairs[pair.id] = pair
    return [pairs[key] for key in sorted(pairs)]


def _images(root: Path, pattern: str) -> list[Path]:
    return [path for path in _glob(root, pattern) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _glob(root: Path, pattern: str) -> list[Path]:
    """What fits, sorted, hidden files left out: as it is written, else in upper or lower case."""
    either = re.sub("[A-Za-z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", pattern)
    found = glob.glob(pattern, root_dir=root) or glob.glob(either, root_dir=root)
    return sorted(root / name for name in found)


_say = cache(print)  # each line once per process: a run asks for its pairs many times


for _dataset in (
    FolderDataset(
        "DIV2K_val",
        "DIV2K validation photographs (Agustsson and Timofte, CVPRW 2017)",
        ("DIV2K_V2_val", "DIV2K_valid"),
    ),
    FolderDataset("DRealSR", "real-camera pairs of five cameras (Wei et al., ECCV 2020)", ("DrealSRVal_crop128",)),
    FolderDataset(
        "RealSR",
        "100 real-camera pairs, 128x128 to 512x512, as published with OSEDiff (arXiv:2406.08177)",
        ("RealSRVal_crop128", "RealSR(V3)"),
    ),
    FolderDataset("Urban100", "photographs of buildings, bicubic x4 (Huang et al., CVPR 2015)", ("Urban100_SR",)),
):
    DATASETS.register(_dataset.name)(_dataset)
