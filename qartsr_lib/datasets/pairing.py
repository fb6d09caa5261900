"""Which files show the same picture: one rule for data sets, `evaluate` and outside systems."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qartsr_lib.errors import QartsrError
from qartsr_lib.images import IMAGE_SUFFIXES, list_images

_LR = r"(?:bic(?:ubic)?[-_]?)?lr(?:[2348]|bi|bd|dn)?"
#: What archives and programs append to a picture's name: 0801x4, 0801x4m and 0801_bicLRx4 (DIV2K, NTIRE, BasicSR),
#: img_001_SRF_4_LR (SelfExSR), Canon_001_LR4 (RealSR), DSC_1276_x1 (DRealSR), baby_LRBI_x4 (RCAN), baby_out
#: (Real-ESRGAN), baby_rlt (ESRGAN). Only LR and x take a number: HR1 and HR2 may be two pictures.
_ENDING = re.compile(
    r"(?<=.)(?:[-_. ]*x(?:[12348]|16)(?:[md]|w[1-4]?)?"
    rf"|[-_. ]+(?:srf[-_]?[2348]|[2348]x|{_LR}|bic(?:ubic)?|hr|sr|gt|lq|hq|out|output|rlt|swinir|upscaled)?)$",
    re.IGNORECASE,
)
_INPUT = re.compile(rf"[-_. ]{_LR}(?:[-_. ]*x[2348])?$", re.IGNORECASE)
#: What else may be an ending, if several pictures have it: an experiment's name, as BasicSR appends.
_TAIL = re.compile(r"(?:x[2348])?[-_][a-z][^/]*")
SHOWN = 5


class Matches(NamedTuple):
    """Result of `match`.

    Attributes:
        pairs: (image, reference), sorted by the image's name.
        left_out: image without a reference -> why.
        unused: references without an image.
    """

    pairs: list[tuple[Path, Path]]
    left_out: dict[Path, str]
    unused: list[Path]

    def remarks(self) -> list[str]:
        """A line for each kind of file that is not used."""
        lines = []
        if self.left_out:
            shown = ", ".join(f"{path.name} ({why})" for path, why in list(self.left_out.items())[:SHOWN])
            more = f" and {len(self.left_out) - SHOWN} more" if len(self.left_out) > SHOWN else ""
            lines.append(f"{len(self.left_out)} image(s) left out: {shown}{more}")
        if self.unused:
            lines.append(f"{len(self.unused)} of {len(self.unused) + len(self.pairs)} references have no image")
        return lines


def match(images: Mapping[Path, str], references: Mapping[Path, str]) -> Matches:
    """Pair images with references by name: by the first of these rules that finds a partner.

    Equal names; equal stems; equal but for upper and lower case; equal without the endings that `_ENDING` describes;
    equal without an ending that several images have alike. A number is never an ending, and order never counts.

    Args:
        images: file -> its name, with the folder below the one that was given: "Set5/baby.png".
        references: likewise.

    Raises:
        QartsrError: by one and the same rule, two references fit an image or two images a reference.
    """
    left, free, pairs = dict(images), dict(references), []
    for rule in (lambda name: name, _stem, _folded, _bare):
        pairs += _pair(left, free, rule)
    pairs += _pair(left, free, _without_tails(left.values(), free.values()))
    taken = {_bare(references[reference]): (image, reference) for image, reference in pairs}
    left_out = {}
    for image, name in sorted(left.items(), key=lambda item: item[1]):
        owner = taken.get(_bare(name))
        left_out[image] = f"{owner[0].name} has its reference" if owner else "no reference has its name"
    return Matches(sorted(pairs, key=lambda pair: images[pair[0]]), left_out, list(free))


def match_folders(image_dir: str | Path, reference_dir: str | Path) -> Matches:
    """`match` for all images in and below two folders; hidden files are no images.

    Low-quality files that lie beside the references (img_001_SRF_4_LR.png with img_001_SRF_4_HR.png) are no references.

    Raises:
        QartsrError: see `match`; a folder is missing or empty, or nothing pairs.
    """
    images, references = images_below(image_dir), images_below(reference_dir)
    originals = {_bare(name) for name in references.values() if not _INPUT.search(_stem(name))}
    inputs = {path for path, name in references.items() if _INPUT.search(_stem(name)) and _bare(name) in originals}
    found = match(images, {path: name for path, name in references.items() if path not in inputs})
    if not found.pairs:
        raise QartsrError(
            f"{image_dir}: no image has the name of a reference in {reference_dir} ({next(iter(images.values()))} and "
            f"{next(iter(references.values()))} are the first); rename the images like their references, in the same "
            "subfolders; endings such as x4, _LR, _SR or _out do not matter, and order does not count"
        )
    return found


def images_below(folder: str | Path) -> dict[Path, str]:
    """Image file -> its name below `folder`, subfolders included, sorted; hidden files and folders are skipped.

    Raises:
        QartsrError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))}
    seen = {path: name for path, name in names.items() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()}
    shown = {path: name for path, name in seen.items() if not re.search(r"(^|/)(\.|__MACOSX/)", name)}
    return shown or {path: path.name for path in list_images(folder)}


def bare_stem(stem: str) -> str:
    """`Canon_001_LR4` -> `Canon_001`, `0801x4m` -> `0801`: the picture's name, never empty."""
    while (shorter := _ENDING.sub("", stem)) != stem:
        stem = shorter
    return stem


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _folded(name: str) -> str:
    """Case does not count, nor how an accent is written (macOS takes it apart)."""
    return unicodedata.normalize("NFC", _stem(name)).casefold()


def _bare(name: str) -> str:
    path = PurePosixPath(_folded(name))
    return (path.parent / bare_stem(path.name)).as_posix()


def _without_tails(images: Iterable[str], references: Iterable[str]) -> Callable[[str], str]:
    """A rule that cuts what at least two of the images have behind the name of a reference."""
    starts = {_bare(name) for name in references}
    splits = ((name, i) for name in map(_bare, images) for i in range(len(name)) if name[:i] in starts)
    tails = Counter(name[i:] for name, i in splits if _TAIL.fullmatch(name, i))
    common = [re.escape(tail) for tail, count in tails.items() if count > 1]
    pattern = re.compile(f"(?:{'|'.join(common)})$" if common else r"(?!)")
    return lambda name: pattern.sub("", _bare(name))


def _pair(left: dict[Path, str], free: dict[Path, str], rule: Callable[[str], str]) -> list[tuple[Path, Path]]:
    """The pairs that one rule finds, which are taken out of `left` and `free`."""
    groups: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, files in enumerate((left, free)):
        for path, name in files.items():
            groups.setdefault(rule(name), ([], []))[side].append(path)
    pairs = []
    for images, references in groups.values():
        if not images or not references:
            continue
        if len(references) > 1:
            names = " and ".join(path.name for path in references[:2])
            raise QartsrError(
                f"{images[0]}: more than one reference fits ({names} in {references[0].parent}); remove or rename one"
            )
        if len(images) > 1:
            raise QartsrError(
                f"{images[0]} and {images[1]} both belong to the reference {references[0].name}; remove one of them"
            )
        pairs.append((images[0], references[0]))
        del left[images[0]], free[references[0]]
    return pairs
