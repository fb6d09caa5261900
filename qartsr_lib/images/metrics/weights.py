"""Find, check and fetch metric weights; decide within seconds whether they are to be had at all."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import urllib.request
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import installed_file, sha256, stand_in
from qartsr_lib.base.paths import named_folder
from qartsr_lib.images.metrics.converted import CONVERTED, converted

FOLDER_VARIABLE = "QARTSR_METRIC_WEIGHTS"  # see paths.VARIABLES
PROBE_SECONDS = 2.5
_DOWNLOAD_STALL_SECONDS = 20.0
_PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class WeightFile:
    """A file that a metric loads."""

    url: str  # where it is published
    cache: str = "pyiqa"  # subfolder of torch hub's cache in which pyiqa and torchvision keep it
    sha256: str | None = None  # beginning of its checksum, where the publisher states one
    packaged: str | None = None  # an identical copy in an installed package

    @property
    def name(self) -> str:
        """Its file name, everywhere but in `packaged`."""
        return self.url.rsplit("/", 1)[1]


def weights_folder(folder: str | Path | None = None) -> Path | None:
    """The folder given, else QARTSR_METRIC_WEIGHTS, else None; a QartsrError where it is missing."""
    return named_folder(folder, FOLDER_VARIABLE)


def locate(file: WeightFile, folder: Path | None) -> Path | None:
    """Where `file` lies: weights folder, torch hub's cache, installed packages, Hugging Face's cache, or converted."""
    for place in (folder and folder / file.name, _hub_cache(file), file.packaged and installed_file(file.packaged)):
        if place and place.is_file():
            return place
    return (_hugging_face_cached(file) if file.url.startswith(_PUBLIC_HUB) else None) or converted(file.name)


def _hub_cache(file: WeightFile) -> Path:
    from torch import hub  # takes a second

    return Path(hub.get_dir(), file.cache, file.name)


def _hugging_face_cached(file: WeightFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    owner, repository = file.url.removeprefix(_PUBLIC_HUB + "/").split("/")[:2]
    cached = try_to_load_from_cache(f"{owner}/{repository}", file.name)
    return Path(cached) if isinstance(cached, str) else None


def _damage(file: WeightFile, path: Path, *, thorough: bool) -> str | None:
    """The note for a file that cannot be right (it names no folder, as notes are published), or None.

    `thorough` compares the checksum too, which reads the whole file (0.5 GB for the largest).
    """
    with open(path, "rb") as stream:
        head = stream.read(64)
    detail = stand_in(head)
    if not detail and path.suffix == ".mat":
        import scipy.io

        try:
            scipy.io.loadmat(path)
        except Exception as error:  # scipy raises many kinds for a damaged file
            detail = f"not readable as a MATLAB file ({type(error).__name__})"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        detail = "the file is cut short"
    published = path.suffix != CONVERTED  # converted files come from checked ones
    if not detail and thorough and published and file.sha256 and not (found := sha256(path)).startswith(file.sha256):
        detail = f"its checksum begins with {found[:8]} and not with {file.sha256[:8]}"
    return f"weights damaged: {file.name} ({detail}); replace the file" if detail else None


def missing_reason(files: Iterable[WeightFile], folder: str | Path | None) -> str | None:
    """None when every file is there or can be fetched, else how to get it; see `reachable` for the time it takes."""
    place = weights_folder(folder)
    found = {file: locate(file, place) for file in files}
    damaged = [_damage(file, path, thorough=False) for file, path in found.items() if path]
    missing = [file.name for file, path in found.items() if path is None]
    absent = _not_found(*missing) if missing and not reachable() else None
    return next(filter(None, damaged), absent)


def obtain(file: WeightFile, folder: str | Path | None) -> Path:
    """Path of `file`, downloaded when it is nowhere; a QartsrError where it is damaged or cannot be had."""
    path = locate(file, weights_folder(folder))
    if path is None and not reachable():
        raise QartsrError(_not_found(file.name))
    path = path or _download(file)
    if damaged := _damage(file, path, thorough=True):
        raise QartsrError(damaged)
    return path


def _not_found(*names: str) -> str:
    files = " and ".join(names)
    return f"weights not found: put {files} into the folder named by {FOLDER_VARIABLE}, or connect to the internet once"


def _download(file: WeightFile) -> Path:
    """Fetch `file` with torch hub's downloader (temporary file, then rename)."""
    from torch import hub

    target, previous = _hub_cache(file), socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_DOWNLOAD_STALL_SECONDS)  # torch hub itself would wait for ever
        target.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(file.url.replace(_PUBLIC_HUB, _hub(), 1), str(target), hash_prefix=file.sha256)
    except (OSError, RuntimeError) as error:
        raise QartsrError(
            f"weights not found: the download of {file.name} failed ({type(error).__name__}); "
            f"put it into the folder named by {FOLDER_VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)
    return target


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", _PUBLIC_HUB).rstrip("/")


@functools.cache
def reachable() -> bool:
    """Whether the weights hub answers; asked once per process and for PROBE_SECONDS, unless HF_HUB_OFFLINE says no.

    The question is asked in a thread of its own, because resolving a host name cannot be given a time limit.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):  # no network, refused, or HF_ENDPOINT is no address
            request = urllib.request.Request(_hub(), method="HEAD")
            with urllib.request.urlopen(request, timeout=2.0) as reply:
                answers.append(reply.status < 400)

    thread = threading.Thread(target=ask, name="metric-weights-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return any(answers)
