"""Where things lie, whatever the working directory. `QARTSR_HOME` moves all that is written but compiled loops."""

from __future__ import annotations

import os
from pathlib import Path

from qartsr_lib.base.errors import QartsrError


def home() -> Path:
    """The folder of results/, figures/, .cache/ and build/: QARTSR_HOME, else the checkout, else the working folder."""
    override = os.environ.get("QARTSR_HOME")
    return Path(override).expanduser().resolve() if override else _checkout()


def _checkout() -> Path:
    """The checkout that this package lies in; the working folder for an installed package."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def notebooks_dir() -> Path:
    """The notebook sources."""
    return home() / "notebooks"


def results_dir(profile: str) -> Path:
    """Committed result tables of a profile."""
    return home() / "results" / profile


def figures_dir(profile: str) -> Path:
    """Committed figures and rendered tables of a profile."""
    return home() / "figures" / profile


def build_dir(profile: str) -> Path:
    """Untracked: executed notebooks."""
    return home() / "build" / profile


def cache_dir() -> Path:
    """Untracked: finished runs, parts of photographs."""
    return home() / ".cache"


def loops_dir() -> Path:
    """Untracked: compiled loops, which depend on the sources and the machine alone, not on QARTSR_HOME."""
    return _checkout() / ".cache" / "loops"


def data_root(argument: str | os.PathLike | None = None) -> Path | None:
    """The folder of the benchmarks: `argument`, else DATA_ROOT, else None; a QartsrError where it does not exist."""
    return named_folder(argument, "DATA_ROOT")


def weights_dir(argument: str | os.PathLike | None = None) -> Path:
    """The folder of unshipped backbone weights: `argument`, else QARTSR_WEIGHTS, else <home>/weights."""
    return named_folder(argument, "QARTSR_WEIGHTS") or home() / "weights"


def named_folder(argument: str | os.PathLike | None, variable: str) -> Path | None:
    """The folder `argument`, else the one that an environment variable names, else None.

    Raises:
        QartsrError: a folder was named and does not exist.
    """
    named = argument or os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check {variable}")
    return folder
