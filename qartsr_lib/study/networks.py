"""Networks that people know, run on the study's images: their outputs are scored as those of outside systems are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from qartsr_lib.base import paths, provenance
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import check_finite
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.base.progress import progress
from qartsr_lib.images import networks
from qartsr_lib.images.datasets.base import Pair, available_data
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.measured import answered
from qartsr_lib.study.outside import Outputs
from qartsr_lib.study.paper import NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.profiles import Profile


def outputs(profile: Profile, data_root: str | Path | None = None) -> list[Outputs]:
    """Upscale the low-quality files that the study's models see by each of the profile's `networks`, on the CPU.

    Every image is made once and kept as an 8-bit PNG in the profile's cache. A network whose packages are missing is
    left out and named, with what to do. A QartsrError for unknown names, broken data and files, a full disk.
    """
    reasons = {name: networks.missing_reason(name) for name in profile.networks}
    for name, reason in reasons.items():
        if reason:
            print(f"{name} is left out: {reason}", flush=True)
    names = [name for name, reason in reasons.items() if not reason]
    if not names:
        return []
    pairs, _ = available_data(profile.datasets, paths.data_root(data_root), profile.max_images, profile.max_side)
    cache, load = RunCache.for_profile(profile.name), lru_cache(1)(networks.load)  # found images need no network
    work = [(name, dataset, pair) for name in names for dataset in pairs for pair in pairs[dataset]]
    files: dict[tuple[str, str], dict[str, Path]] = {}
    for name, dataset, pair in progress(work, "networks"):
        files.setdefault((name, dataset), {})[pair.id] = _upscaled(name, pair, cache, load)
    return [
        Outputs(
            Experiment(OUTSIDE, NO_TIMESTEP, *FULL_PRECISION, dataset, label=name),
            pairs[dataset],
            found,
            networks.identity(name),
        )
        for (name, dataset), found in files.items()
    ]


def _upscaled(name: str, pair: Pair, cache: RunCache, load: Any) -> Path:
    """The file of one image, made where it is not in the cache."""

    def make(folder: Path) -> dict[str, Any]:
        sr = load(name)(read_image(pair.lq))
        check_finite([("the image", sr)], f"{name} on {pair.lq}", networks.INSTALL)
        write_png(folder / f"{pair.id}.png", sr)
        return {}

    question = [networks.identity(name), remembered_sha256(pair.lq), pair.id]  # by which the file is named
    return answered(cache, "network", question, provenance.environment(), make)["folder"] / f"{pair.id}.png"
