"""Distances of images that the features of a backbone give: named here, registered by the backbones."""

from __future__ import annotations

from collections.abc import Callable

from qartsr_lib.base.registry import Registry

#: Name -> function(device) -> distance of images (N, 3, H, W) in [0, 1]. Not in `metrics`, which no backbone need load.
DISTANCES: Registry[Callable[[str], Callable]] = Registry("feature distance")
