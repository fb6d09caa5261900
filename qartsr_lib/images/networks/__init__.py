"""Super-resolution networks that people know, x4 and in full precision: what the study's models compete with.

    upscale = load("SPAN")  # (1, 3, h, w) -> (1, 3, 4h, 4w), RGB float32 in [0, 1] on the CPU

A network is one `NetworkSpec` in a module of this package. Its files lie inside an ordinary package, which packages.txt
pins and nobody needs: they are checked against their sha256 before they are read, and nothing is imported before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from typing import Any

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import installed_file, remembered_sha256
from qartsr_lib.base.registry import Registry
from qartsr_lib.images.tiling import TILE, blended

Upscale = Callable[[torch.Tensor], torch.Tensor]
INSTALL = "python -m pip install --no-deps -r qartsr_lib/images/networks/packages.txt"


@dataclass(frozen=True)
class NetworkSpec:
    """One network as the tables name it."""

    name: str
    trained_for: str  # degradation and aim
    parameters: int
    licence: str  # of the weights, as their package states it
    source: str  # paper
    engine: str  # the package that computes
    files: Mapping[str, str]  # place inside an installed package -> sha256
    build: Callable[..., Upscale]  # from their paths, in this order


NETWORKS: Registry[NetworkSpec] = Registry("network", __package__)


def missing_reason(name: str) -> str | None:
    """None where a network can be loaded, else what is not installed, and how to install it, in one line."""
    spec = NETWORKS.get(name)
    places = [f"{spec.engine}/__init__.py", *spec.files]
    missing = next((place for place in places if installed_file(place) is None), None)
    return f"{missing} is not installed; {INSTALL}" if missing else None


def identity(name: str) -> dict[str, Any]:
    """What determines a network's images, and what it is, as plain JSON: part of cache keys and run records."""
    spec = NETWORKS.get(name)
    facts = {key: getattr(spec, key) for key in ("name", "trained_for", "parameters", "licence", "source", "engine")}
    return facts | {"engine_version": metadata.version(spec.engine), "files_sha256": dict(spec.files)}


def load(name: str) -> Upscale:
    """The network as a function of an image; one longer than 256 is computed in blended tiles of 256 x 256, 3 GB each.

    A QartsrError where a package is missing or holds other files than those that were checked.
    """
    if reason := missing_reason(name):
        raise QartsrError(f"{name}: {reason}")
    spec = NETWORKS.get(name)
    for place, wanted in spec.files.items():
        if remembered_sha256(installed_file(place)) != wanted:
            raise QartsrError(f"{place}: is not the file that {name} is known by (sha256 {wanted[:12]}...); {INSTALL}")
    network = spec.build(*map(installed_file, spec.files))

    @torch.no_grad()
    def upscale(lq: torch.Tensor) -> torch.Tensor:
        return blended(network, lq, TILE, TILE // 8, Fraction(4)).clamp(0, 1)

    return upscale


def trained_for(names: Iterable[str]) -> str:
    """A sentence on those of `names` that are networks, for below a table; "" where none is."""
    aims: dict[str, list[str]] = {}
    for name in filter(NETWORKS.__contains__, dict.fromkeys(names)):
        aims.setdefault(NETWORKS.get(name).trained_for, []).append(name)
    return "; ".join(f"{' and '.join(found)}: trained for {aim}" for aim, found in aims.items()) + "." * bool(aims)
