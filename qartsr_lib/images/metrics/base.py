"""What a metric is: one row of options, one builder, the weight files it needs; torch is imported where it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qartsr_lib.base.registry import Registry

Compute = Callable[["torch.Tensor", "torch.Tensor | None"], float]  # noqa: F821
"""(SR, HR or None) -> score; images are (1, 3, H, W) RGB float32 in [0, 1] on the CPU."""


@dataclass(frozen=True)
class WeightFile:
    """A file that a metric loads.

    Attributes:
        url: where it is published.
        cache: subfolder of torch hub's cache in which pyiqa and torchvision keep it.
        sha256: beginning of its checksum, or None where the publisher states none.
        packaged: (installed package, path inside it) of an identical copy, if there is one.
    """

    url: str
    cache: str = "pyiqa"
    sha256: str | None = None
    packaged: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Its file name, everywhere but in `packaged`."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class MetricSpec:
    """One metric as the tables name it.

    Attributes:
        name: the paper's name ("CLIP-IQA").
        kind: "FR" compares with a reference image, "NR" judges the SR image alone.
        description: one line for people.
        build: makes the scoring function from the located weight files (name -> path), once per process.
        options: everything that changes the number; part of a run's identity.
        weights: files that must be there before `build` may be called.
        minimum_side: shorter image sides give no value.
        one_thread: score on one thread, so that the last bits do not depend on the number of
            threads. Off for the networks, which would take minutes per image.
        ceiling: the highest value, where a constant in the formula sets one that images reach.
    """

    name: str
    kind: Literal["FR", "NR"]
    higher_is_better: bool
    description: str
    build: Callable[[Mapping[str, Path]], Compute]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[WeightFile, ...] = ()
    minimum_side: int = 1
    one_thread: bool = True
    ceiling: float | None = None


METRICS: Registry[MetricSpec] = Registry("metric", __package__)


def lower_is_better(name: str) -> bool:
    """Whether less is better in the metric called `name`; False for what is no metric."""
    return name in METRICS and not METRICS.get(name).higher_is_better
