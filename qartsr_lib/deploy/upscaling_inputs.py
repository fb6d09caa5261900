"""Which files `upscale` is to read, which it leaves out, and where results go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import IMAGE_SUFFIXES, is_listed
from qartsr_lib.images.image_files import explained
from qartsr_lib.images.stamped_png import read_stamp

NAMED = 5
"""So many files of one kind are named in a message; more are counted."""
_SYSTEM = ("thumbs.db", "desktop.ini")


@dataclass
class Inputs:
    """What the arguments of a run lead to.

    Attributes:
        paths: files to read, each once.
        failures: argument -> why it leads to no image.
        notes: one line for each folder of which something is left out.
    """

    paths: list[Path] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_inputs(items: Sequence[Path], out: Path) -> Inputs:
    """Files as they are named, and the images directly in named folders, by name.

    Args:
        out: folder of results; where it is also an input, results of earlier runs are no inputs.
    """
    found, seen = Inputs(), set()
    for item in items:
        paths = [item]
        if os.path.isdir(item):
            try:
                with explained(item):
                    paths, left_out = _look_into(item, out)
            except QartsrError as error:
                found.failures[item] = str(error)
                continue
            if not paths:
                found.failures[item] = f"{item}: holds no image{left_out and f', only {left_out}'}; name another folder"
            elif left_out:
                found.notes.append(f"{item}: left out: {left_out}")
        for path in paths:
            if (place := os.path.realpath(path)) not in seen:
                seen.add(place)
                found.paths.append(path)
    return found


def result_files(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Input -> the file for its result: its name with .png for its ending, behind it where inputs differ in that alone.

    Raises:
        QartsrError: two inputs would have one result, or a result would lie in the place of an input.
    """
    stems = Counter(path.stem for path in paths)
    places = {path: out / f"{path.stem if stems[path.stem] == 1 else path.name}.png" for path in paths}
    first: dict[Path, Path] = {}
    clashes = [path for path, place in places.items() if first.setdefault(place, path) is not path]
    if clashes:
        path, more = clashes[0], f" ({len(clashes) - 1} more such)" if len(clashes) > 1 else ""
        other = first[places[path]]
        raise QartsrError(f"{path}: would overwrite the result of {other}{more}; rename one, or use another --out")
    inputs = {identity for path in paths if (identity := _identity(path))}
    for place in places.values():
        if _identity(place) in inputs:
            raise QartsrError(f"--out {out}: {place} is an input; choose another folder")
    return places


def named(names: Sequence[str]) -> str:
    """The first few names, and how many there are more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file (links, capital letters on some systems) have in common; None for no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _look_into(folder: Path, out: Path) -> tuple[list[Path], str]:
    """(images directly in `folder`, what is left out, in words; hidden files and those of the system go unsaid)."""
    entries = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in _SYSTEM)
    images = [path for path in entries if is_listed(path, folder)]
    is_out = _identity(folder) == _identity(out)
    results = [path for path in images if is_out and read_stamp(path) is not None]
    folders = [path for path in entries if path.is_dir()]
    broken = [path for path in entries if not path.exists()]
    other = sorted(set(entries) - {*images, *folders, *broken})
    parts = (
        ([path for path in folders if _identity(path) != _identity(out)], "subfolder(s)", "; name them too"),
        (other, f"file(s) with endings other than {', '.join(IMAGE_SUFFIXES)}", "; name them too to have them read"),
        (broken, "link(s) to nothing", ""),
        (results, "result(s) of earlier runs", ""),
    )
    said = [f"{len(paths)} {kind} ({named([p.name for p in paths])}{hint})" for paths, kind, hint in parts if paths]
    return [path for path in images if path not in results], ", ".join(said)
