"""Where things lie, from any working directory.

Notebooks run from anywhere (papermill, JupyterLab, the runner), so no path is relative to the
working directory. `QARTSR_HOME` moves all that is written but compiled loops; tests use it.
"""

from __future__ import annotations

import os
from pathlib import Path

from qartsr_lib.base.errors import QartsrError


def home() -> Path:
    """The folder that holds results/, figures/, .cache/ and build/.

    `QARTSR_HOME` if set, else the checkout this package lies in, else (package installed without
    its checkout) the working directory.
    """
    override = os.environ.get("QARTSR_HOME")
    return Path(override).expanduser().resolve() if override else _checkout()


def _checkout() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def notebooks_dir() -> Path:
    """The folder of the notebook sources."""
    return home() / "notebooks"


def results_dir(profile: str) -> Path:
    """Committed result tables of a profile."""
    return home() / "results" / profile


def figures_dir(profile: str) -> Path:
    """Committed figures and rendered tables of a profile."""
    return home() / "figures" / profile


def cache_dir() -> Path:
    """Untracked: finished runs, materialised sample photographs."""
    return home() / ".cache"


def loops_dir() -> Path:
    """Untracked: compiled loops. Wherever QARTSR_HOME is, as they depend on the sources and the machine alone."""
    return _checkout() / ".cache" / "loops"


def build_dir(profile: str) -> Path:
    """Untracked: executed notebooks."""
    return home() / "build" / profile


def data_root(argument: str | os.PathLike | None = None) -> Path | None:
    """The folder of the benchmarks: `argument`, else the environment variable DATA_ROOT, else None.

    Raises:
        QartsrError: a folder was named and does not exist.
    """
    return _named_folder(argument, "DATA_ROOT")


def weights_dir(argument: str | os.PathLike | None = None) -> Path:
    """The folder of backbone weights that are not shipped: `argument`, else QARTSR_WEIGHTS, else <home>/weights.

    Raises:
        QartsrError: a folder was named and does not exist.
    """
    return _named_folder(argument, "QARTSR_WEIGHTS") or home() / "weights"


def _named_folder(argument: str | os.PathLike | None, variable: str) -> Path | None:
    named = argument or os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check {variable}")
    return folder
