"""Find, check and fetch metric weights; decide within seconds whether they are to be had at all."""

from __future__ import annotations

import functools
import importlib.util
import os
import socket
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import sha256
from qartsr_lib.images.metrics.base import MetricSpec, WeightFile

FOLDER_VARIABLE = "QARTSR_METRIC_WEIGHTS"
PROBE_SECONDS = 2.5
_DOWNLOAD_STALL_SECONDS = 20.0
_PUBLIC_HUB = "https://huggingface.co"


def weights_folder(folder: str | Path | None = None) -> Path | None:
    """The folder given, else the one that QARTSR_METRIC_WEIGHTS names, else None.

    Raises:
        QartsrError: the folder does not exist.
    """
    named = folder if folder is not None else os.environ.get(FOLDER_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise QartsrError(f"{path}: no such folder of metric weights; check the path (or unset {FOLDER_VARIABLE})")
    return path


def locate(file: WeightFile, folder: Path | None) -> Path | None:
    """Where `file` lies: weights folder, torch hub's cache, installed packages, Hugging Face's cache."""
    return next((place for place in _places(file, folder) if place is not None and place.is_file()), None)


def _places(file: WeightFile, folder: Path | None) -> Iterator[Path | None]:
    """The places in order, each worked out only when the earlier ones failed."""
    if folder is not None:
        yield folder / file.name
    from torch import hub  # takes a second

    yield Path(hub.get_dir(), file.cache, file.name)
    if file.packaged is not None:
        package, inside = file.packaged
        found = importlib.util.find_spec(package)
        if found is not None and found.origin:
            yield Path(found.origin).parent / inside
    if file.url.startswith(_PUBLIC_HUB):
        yield _hugging_face_cached(file)


def _hugging_face_cached(file: WeightFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    owner, repository = file.url.removeprefix(_PUBLIC_HUB + "/").split("/")[:2]
    cached = try_to_load_from_cache(f"{owner}/{repository}", file.name)
    return Path(cached) if isinstance(cached, str) else None


def damage(file: WeightFile, path: Path, *, thorough: bool) -> str | None:
    """Why the file at `path` cannot be right, or None.

    Args:
        thorough: also compare the checksum, which reads the whole file (0.5 GB for the largest).
    """
    if path.stat().st_size == 0:
        return "the file is empty"
    if path.suffix == ".mat":
        import scipy.io

        try:
            scipy.io.loadmat(path)
        except Exception as error:  # scipy raises many kinds for a damaged file
            return f"not readable as a MATLAB file ({type(error).__name__})"
    with open(path, "rb") as stream:
        is_archive = stream.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(path):
        return "the file is cut short"
    if thorough and file.sha256 is not None:
        found = sha256(path)
        if not found.startswith(file.sha256):
            return f"its checksum begins with {found[:8]} and not with {file.sha256[:8]}"
    return None


def damaged_reason(file: WeightFile, detail: str) -> str:
    """The note for a file that is there and wrong; it names no folder, as notes are published."""
    return f"weights damaged: {file.name} ({detail}); replace the file"


def missing_reason(spec: MetricSpec, folder: str | Path | None) -> str | None:
    """None when every file of `spec` is there or can be fetched, else how to get it.

    Takes milliseconds, plus at most PROBE_SECONDS once per process for the network.
    """
    place = weights_folder(folder)
    missing = []
    for file in spec.weights:
        path = locate(file, place)
        if path is None:
            missing.append(file.name)
            continue
        detail = damage(file, path, thorough=False)
        if detail:
            return damaged_reason(file, detail)
    if not missing or reachable():
        return None
    return (
        f"weights not found: put {' and '.join(missing)} into the folder named by {FOLDER_VARIABLE}, "
        "or connect to the internet once"
    )


def obtain(file: WeightFile, folder: str | Path | None) -> Path:
    """Path of `file`, checked; downloaded into torch hub's cache when it is nowhere.

    Raises:
        QartsrError: it is damaged, or cannot be downloaded.
    """
    path = locate(file, weights_folder(folder))
    if path is None and not reachable():
        raise QartsrError(f"weights not found: put {file.name} into the folder named by {FOLDER_VARIABLE}")
    if path is None:
        path = _download(file)
    detail = damage(file, path, thorough=True)
    if detail:
        raise QartsrError(damaged_reason(file, detail))
    return path


def _download(file: WeightFile) -> Path:
    """Fetch `file` with torch hub's downloader (temporary file, then rename)."""
    from torch import hub

    target = Path(hub.get_dir(), file.cache, file.name)
    url = file.url.replace(_PUBLIC_HUB, _hub(), 1)
    previous = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_DOWNLOAD_STALL_SECONDS)  # torch hub itself would wait for ever
        target.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(target), hash_prefix=file.sha256)
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
    """Whether the weights hub answers; asked once per process, never longer than PROBE_SECONDS.

    The question is asked in a thread of its own, because resolving a host name cannot be given a
    time limit. HF_HUB_OFFLINE answers it without asking.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(_hub(), method="HEAD")
            with urllib.request.urlopen(request, timeout=2.0) as reply:
                answers.append(reply.status < 400)
        except (OSError, ValueError):  # no network, refused, or HF_ENDPOINT is no address
            answers.append(False)

    thread = threading.Thread(target=ask, name="metric-weights-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers and answers[0])
