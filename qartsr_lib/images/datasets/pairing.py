"""Which files show the same picture: one rule for data sets, `evaluate` and outside systems."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import IMAGE_SUFFIXES, list_images

_LR = r"(?:bic(?:ubic)?[-_]?)?lr(?:[2348]|bi|bd|dn)?"
#: What archives and programs append to a picture's name: 0801x4, 0801x4m and 0801_bicLRx4 (DIV2K, NTIRE, BasicSR),
#: img_001_SRF_4_LR (SelfExSR), Canon_001_LR4 (RealSR), DSC_1276_x1 (DRealSR), baby_LRBI_x4 (RCAN), baby_out
#: (Real-ESRGAN), baby_rlt (ESRGAN). Only LR and x take a number: HR1 and HR2 may be two pictures.
_ENDING = re.compile(
    r"(?<=.)(?:[-_. ]*x(?:[12348]|16)(?:[md]|w[1-4]?)?"
    rf"|[-_. ]+(?:srf[-_]?[2348]|[2348]x|{_LR}|bic(?:ubic)?|hr|sr|gt|lq|hq|out|output|rlt|swinir|upscaled)?"
    rf"|(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))$",
    re.IGNORECASE,
)
#: Endings of a picture in full resolution, beside which its other versions are no references.
_ORIGINAL = re.compile(r"(?<=.)[-_. ](?:hr|gt|x1)$", re.IGNORECASE)
_SCALE = re.compile(r"(?:x|lr|srf[-_]?)(\d+)|(\d)x", re.IGNORECASE)
_INPUT = re.compile(rf"[-_. ]{_LR}(?:[-_. ]*x[2348])?$", re.IGNORECASE)
#: What else may be an ending, if several pictures have it: an experiment's name, as BasicSR appends.
_TAIL = re.compile(r"(?:x[2348])?[-_][a-z][^/]*")
SHOWN = 5  # files of one kind that a message names; more are counted
_MOST = 4  # endings of one name

_Names = Mapping[Path, str]
_Pairs = list[tuple[Path, Path]]
_Rule = Callable[[str], str]


class Matches(NamedTuple):
    """Result of `match`."""

    pairs: _Pairs  # (image, reference), sorted by the image's name
    left_out: dict[Path, str]  # image without a reference -> why
    unused: list[Path]  # references without an image

    def remarks(self) -> list[str]:
        """A line for each kind of file that is not used."""
        lines = []
        if self.left_out:
            shown = named([f"{path.name} ({why})" for path, why in self.left_out.items()])
            lines.append(f"{len(self.left_out)} image(s) left out: {shown}")
        if self.unused:
            lines.append(f"{len(self.unused)} of {len(self.unused) + len(self.pairs)} references have no image")
        return lines


def named(names: Sequence[str]) -> str:
    """The first few names, and how many there are more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def match(images: _Names, references: _Names) -> Matches:
    """Pair images with references by name: by the first of these rules that finds a partner.

    Equal names; equal stems; an image's stem that is the reference's name; equal but for upper and lower case; equal
    without as few endings as possible, of those that `_ENDING` describes; equal without an ending that several images
    have alike. A number is never an ending, two different scales are two pictures (but for x4 and _x1), and order never
    counts. Other versions of a picture beside its original (_SRF_4_LR beside _SRF_4_HR) are no references.

    `images` and `references` give a file's name below the folder that was given, "Set5/baby.png". A QartsrError where
    by one and the same rule two references fit an image or two images a reference.
    """
    left, free, pairs = dict(images), _originals(references), []
    for of_image, of_reference in ((str, str), (_stem, _stem), (_stem, str)):
        pairs += _pair(left, free, of_image, of_reference)
    for cuts in range(1 + 2 * _MOST):
        for cut in range(max(0, cuts - _MOST), 1 + min(cuts, _MOST)):
            pairs += _pair(left, free, partial(_cut, cuts=cuts - cut), partial(_cut, cuts=cut), alone=cuts > 0)
    pairs += _pair(left, free, _without_tails(left.values(), free.values()), _bare)
    taken = {_bare(references[reference]): image.name for image, reference in pairs}
    owners = {image: taken.get(_bare(name)) for image, name in sorted(left.items(), key=lambda item: item[1])}
    left_out = {
        image: f"{owner} has its reference" if owner else "no reference has its name" for image, owner in owners.items()
    }
    return Matches(sorted(pairs, key=lambda pair: images[pair[0]]), left_out, list(free))


def match_folders(image_dir: str | Path, reference_dir: str | Path) -> Matches:
    """`match` for all images in and below two folders; a QartsrError where one is missing or empty or nothing pairs."""
    images, references = (
        {path: path.relative_to(folder).as_posix() for path in list_images(folder, below=True)}
        for folder in (image_dir, reference_dir)
    )
    found = match(images, references)
    if not found.pairs:
        raise QartsrError(
            f"{image_dir}: no image has the name of a reference in {reference_dir} ({next(iter(images.values()))} and "
            f"{next(iter(references.values()))} are the first); rename the images like their references, in the same "
            "subfolders; endings such as x4, _LR, _SR or _out do not matter, and order does not count"
        )
    return found


def _originals(references: _Names) -> dict[Path, str]:
    """References without low-quality files whose original is there, and without what lies beside a marked original."""
    stems = {path: _folded(name) for path, name in references.items()}
    bare = {_bare(name) for name in references.values() if not _INPUT.search(_stem(name))}
    starts = {_ORIGINAL.sub("", stem) for stem in stems.values() if _ORIGINAL.search(stem)}

    def other(path: Path, stem: str) -> bool:
        if _ORIGINAL.search(stem):
            return False
        beside = any(stem[at] in "-_. " and stem[:at] in starts for at in range(len(stem)))
        return beside or bool(_INPUT.search(stem)) and _bare(references[path]) in bare

    return {path: references[path] for path, stem in stems.items() if not other(path, stem)}


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
    return _cut(name, _MOST)


def _cut(name: str, cuts: int) -> str:
    """`_folded` without so many endings; fewer where there are fewer."""
    path = PurePosixPath(_folded(name))
    stem = path.name
    for _ in range(cuts):
        stem = _ENDING.sub("", stem)
    return (path.parent / stem).as_posix()


def _same_scale(image: str, reference: str) -> bool:
    """False for endings with different numbers, as of box3 and box4; a reference marked _x1 fits all."""
    image, reference = (_folded(name) for name in (image, reference))
    if re.search(r"[-_. ]x1$", reference):
        return True
    ends = [name[len(_bare(name + ".png")) :] for name in (image, reference)]
    first, second = ({"".join(found) for found in _SCALE.findall(end)} for end in ends)
    return not first or not second or bool(first & second)


def _by(rule: _Rule, names: _Names) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path, name in names.items():
        found[rule(name)].append(path)
    return found


def _doubt(image: Path, first: Path, second: Path) -> QartsrError:
    names = f"{first.name} and {second.name} in {first.parent}"
    return QartsrError(f"{image}: more than one reference fits ({names}); remove or rename one")


def _without_tails(images: Iterable[str], references: Iterable[str]) -> _Rule:
    """A rule that cuts what at least two of the images have behind the name of a reference."""
    starts = {_bare(name) for name in references}
    splits = ((name, i) for name in map(_bare, images) for i in range(len(name)) if name[:i] in starts)
    tails = Counter(name[i:] for name, i in splits if _TAIL.fullmatch(name, i))
    common = [re.escape(tail) for tail, count in tails.items() if count > 1]
    pattern = re.compile(f"(?:{'|'.join(common)})$" if common else r"(?!)")
    return lambda name: pattern.sub("", _bare(name))


def _pair(
    left: dict[Path, str], free: dict[Path, str], of_image: _Rule, of_reference: _Rule, alone: bool = False
) -> _Pairs:
    """The pairs with equal names by one rule for each side, which are taken out of `left` and `free`.

    With `alone`, no other reference may fit as well without further endings.
    """
    by_name, owner = _by(of_reference, free), {}
    for image, name in left.items():
        fitting = [path for path in by_name.get(of_image(name), []) if _same_scale(name, free[path])]
        if len(fitting) > 1:
            raise _doubt(image, *fitting[:2])
        if fitting and (other := owner.setdefault(fitting[0], image)) is not image:
            raise QartsrError(f"{other} and {image} both belong to the reference {fitting[0].name}; remove one of them")
    names = [(image, left.pop(image), reference, free.pop(reference)) for reference, image in owner.items()]
    others = _by(_bare, free if alone and names else {})
    for image, name, reference, its_name in names:
        for other in others[_bare(its_name)]:
            if _same_scale(name, free[other]):
                raise _doubt(image, reference, other)
    return [(image, reference) for reference, image in owner.items()]
