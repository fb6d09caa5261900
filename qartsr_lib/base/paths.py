"""Environment variables, and where things lie, whatever the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from qartsr_lib.base.errors import QartsrError

#: All that this package reads of its environment -> what it says; `variable` alone reads them.
VARIABLES = {
    "DATA_ROOT": "folder of the benchmarks",
    "QARTSR_HOME": "folder of results/, figures/, weights/, .cache/ and build/ (default: the checkout)",
    "QARTSR_WEIGHTS": "folder of weights that are not shipped (default: weights/)",
    "QARTSR_BACKBONE_WEIGHTS": "folder of embedded backbones, which go before the shipped ones",
    "QARTSR_METRIC_WEIGHTS": "folder of metric weights, which go before those that were downloaded",
    "QARTSR_REVISION": "revision of a copy without git, for run records",
    "QARTSR_LOG_PROGRESS": "if set, progress bars write few lines, as into a log",
}


_SOURCES = Path(__file__).resolve().parents[2]


def variable(name: str) -> str | None:
    """The value of one of VARIABLES now; None where it is not set, or empty."""
    assert name in VARIABLES, f"{name}: write in VARIABLES what it says"
    return os.environ.get(name) or None


def home() -> Path:
    """The folder of all that is written but compiled loops: QARTSR_HOME, else the checkout, else the working folder."""
    override = variable("QARTSR_HOME")
    return Path(override).expanduser().resolve() if override else checkout()


def checkout() -> Path:
    """The checkout that this package lies in; the working folder for an installed package."""
    return _SOURCES if (_SOURCES / "pyproject.toml").is_file() else Path.cwd()


def loops_dir() -> Path:
    """Compiled loops, whatever QARTSR_HOME says: in the checkout; the user's cache folder for an installed package."""
    return (_SOURCES / ".cache" if checkout() == _SOURCES else Path.home() / ".cache" / "qartsr") / "loops"


def results_dir(profile: str) -> Path:
    """Committed result tables of a profile."""
    return home() / "results" / profile


def figures_dir(profile: str) -> Path:
    """Committed figures and rendered tables of a profile."""
    return home() / "figures" / profile


def cache_dir() -> Path:
    """Untracked: finished runs, parts of photographs."""
    return home() / ".cache"


def data_root(argument: str | os.PathLike | None = None) -> Path | None:
    """The folder of the benchmarks: `argument`, else DATA_ROOT, else None; a QartsrError where it does not exist."""
    return named_folder(argument, "DATA_ROOT")


def weights_dir() -> Path:
    """The folder of unshipped backbone weights: QARTSR_WEIGHTS, else <home>/weights."""
    return named_folder(None, "QARTSR_WEIGHTS") or home() / "weights"


def named_folder(argument: str | os.PathLike | None, name: str) -> Path | None:
    """The folder `argument`, else the one that the variable `name` says, else None; a QartsrError where it is none."""
    named = argument or variable(name)
    folder = Path(named).expanduser().resolve() if named else None
    if folder and not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check {name}")
    return folder
