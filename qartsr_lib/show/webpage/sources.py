"""What result files there are, and the run records that numbers link to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError

#: Profiles in the order in which a reader wants them; the last is for tests and shown only where it is alone.
ORDER = ("study", "tiny", "paper", "smoke")


def profiles() -> list[str]:
    """Profiles with tables, the most telling first; smoke only where there is no other."""
    found = [name for name in ORDER if any(paths.results_dir(name).glob("*.csv"))]
    return [name for name in found if name != "smoke"] or found


def first_with(names: Sequence[str], file: str, figures: bool = False) -> str | None:
    """The first of the profiles that has the file in its results (or figures)."""
    folder = paths.figures_dir if figures else paths.results_dir
    return next((name for name in names if (folder(name) / file).is_file()), None)


class Records:
    """Run records by profile and id, read once each; remembers which of them the page links to."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, Any] | None] = {}

    def key(self, profile: str, run_id: str) -> str:
        """ "<profile>/<run_id>" where there is such a record, else ""."""
        key = f"{profile}/{run_id}"
        if key not in self._read:
            path = paths.results_dir(profile) / "runs" / f"{run_id}.json"
            self._read[key] = _record(path) if run_id and path.is_file() else None
        return key if self._read[key] is not None else ""

    @staticmethod
    def href(key: str) -> str:
        """The record's place relative to figures/index.html."""
        profile, run_id = key.split("/")
        return f"../results/{profile}/runs/{run_id}.json"

    def facts(self) -> dict[str, list[str]]:
        """Key -> what the tooltip says, of every record that the page links to."""
        return {key: _facts(record) for key, record in self._read.items() if record is not None}

    def revisions(self) -> list[tuple[str, bool, int]]:
        """(git revision, whether with uncommitted changes, number) of the records linked to, most first."""
        states = [(record.get("git") or {}) for record in self._read.values() if record is not None]
        count = Counter((state.get("revision") or "unknown", bool(state.get("dirty"))) for state in states)
        return [(revision, dirty, number) for (revision, dirty), number in count.most_common()]

    def environments(self) -> list[tuple[str, int]]:
        """(processor, threads and versions as one line, number) of the records linked to, most first."""
        found = [record["environment"] for record in self._read.values() if record and record.get("environment")]
        return Counter(map(_machine, found)).most_common()


def _record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise QartsrError(f"{path}: is not a run record; restore it from git or make the table again") from error


def _facts(record: dict[str, Any]) -> list[str]:
    git, data = record.get("git") or {}, record.get("data")
    data = data if isinstance(data, dict) else {}
    seeds = record.get("parameters", {}).get("seeds")
    changed = " with uncommitted changes" if git.get("dirty") else ""
    lines = [f"revision {git['revision'][:10]}{changed}" if git.get("revision") else "revision unknown"]
    if data.get("name"):
        images = data.get("images")
        lines.append(f"{data['name']}, {images} images" if isinstance(images, int) else str(data["name"]))
    if seeds:
        lines.append(f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}")
    if record.get("calibration"):
        lines.append(f"calibrated on {record['calibration']['name']}")
    if record.get("environment"):
        lines.append(_machine(record["environment"]))
    return [*lines, f"run {record.get('run_id', 'unknown')}"]


def _machine(environment: dict[str, Any]) -> str:
    threads = environment.get("threads")
    versions = environment.get("versions") or {}
    parts = [str(environment.get("device", "unknown processor"))]
    parts += [f"{threads} thread{'s' if threads != 1 else ''}"] if threads else []
    parts += [f"{name} {versions[name]}" for name in ("torch", "pyiqa") if name in versions]
    return ", ".join(parts)
