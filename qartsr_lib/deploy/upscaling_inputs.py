"""Which files `upscale` is to read, which it leaves out, and where results go."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.pairing import named
from qartsr_lib.images.image import IMAGE_SUFFIXES, is_listed
from qartsr_lib.images.image_files import explained
from qartsr_lib.images.stamp import read_stamp

_SYSTEM = ("thumbs.db", "desktop.ini")
_FOLDERS, _BROKEN, _RESULTS = "subfolder(s)", "link(s) to nothing", "result(s) of earlier runs"
_OTHERS = f"file(s) with endings other than {', '.join(IMAGE_SUFFIXES)}"
#: What is left out of a folder, in the order in which it is told -> what can be done about it.
_LEFT_OUT = {_FOLDERS: "; name them too", _OTHERS: "; name them too to have them read", _BROKEN: "", _RESULTS: ""}


def find_inputs(items: Sequence[Path], out: Path) -> tuple[list[Path], dict[Path, str], list[str]]:
    """Files as they are named, and the images directly in named folders, by name.

    Returns the files to read, each once; argument -> why it leads to no image; a note for each folder of which
    something is left out. Where `out`, the folder of results, is also an input, results of earlier runs are no inputs.
    """
    paths: dict[str, Path] = {}
    failures, notes = {}, []
    for item in items:
        images, left_out = [item], ""
        if os.path.isdir(item):
            try:
                with explained(item):
                    images, left_out = _look_into(item, out)
            except QartsrError as error:
                failures[item] = str(error)
                continue
        if not images:
            failures[item] = f"{item}: holds no image{left_out and f', only {left_out}'}; name another folder"
        elif left_out:
            notes.append(f"{item}: left out: {left_out}")
        for path in images:
            first = paths.setdefault(os.path.realpath(path), path)
            if first != path:
                notes.append(f"{path}: left out: the same file as {first}")
    return list(paths.values()), failures, notes


def result_files(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Input -> the file for its result: its name with .png for its ending, behind it where inputs differ in that alone.

    QartsrError when two inputs would have one result, or a result would lie in the place of an input.
    """
    stems = Counter(path.stem for path in paths)
    places = {path: out / f"{path.stem if stems[path.stem] == 1 else path.name}.png" for path in paths}
    first: dict[Path, Path] = {}
    clashes = [path for path, place in places.items() if first.setdefault(place, path) is not path]
    if clashes:
        path, more = clashes[0], f" ({len(clashes) - 1} more such)" if len(clashes) > 1 else ""
        other = first[places[path]]
        raise QartsrError(f"{path}: would overwrite the result of {other}{more}; rename one, or use another --out")
    inputs = set(map(_identity, paths)) - {None}
    for place in places.values():
        if _identity(place) in inputs:
            raise QartsrError(f"--out {out}: {place} is an input; choose another folder")
    return places


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file (links, capital letters on some systems) have in common; None for no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _look_into(folder: Path, out: Path) -> tuple[list[Path], str]:
    """(images directly in `folder`, what is left out, in words; hidden files and those of the system go unsaid)."""
    images, left_out, place = [], defaultdict(list), _identity(out)
    for path in sorted(folder.iterdir()):
        if path.name[0] == "." or path.name.lower() in _SYSTEM:
            continue
        if is_listed(path, folder):
            if _identity(folder) == place and read_stamp(path) is not None:
                left_out[_RESULTS].append(path.name)
            else:
                images.append(path)
        elif not path.is_dir():
            left_out[_OTHERS if path.exists() else _BROKEN].append(path.name)
        elif _identity(path) != place:
            left_out[_FOLDERS].append(path.name)
    told = [(kind, left_out[kind], hint) for kind, hint in _LEFT_OUT.items() if left_out[kind]]
    return images, ", ".join(f"{len(names)} {kind} ({named(names)}{hint})" for kind, names, hint in told)
