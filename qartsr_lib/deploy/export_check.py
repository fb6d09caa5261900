"""Whether the engine that will run an exported file computes what the simulation does: layer by layer, and a picture.

Layers are compared one at a time: while the simulation runs, every layer is given the engine's input and hands on the
engine's output. Then no code is rounded to another side because an earlier sum had another order, and one limit is as
tight at 2 bits as at 8. The picture is compared from end to end, where such codes count: how far they alone move it,
which differs by many dB between networks, is measured in the simulation with rounding noise behind every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.images.image import psnr

Run = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
"""From an upscaled image to what a graph gives, by name."""

NOISES = (1e-6, 2e-5)
"""Relative rounding noise of one layer; between ONNX Runtime and simulation 1e-7 is the median, 2e-5 the most.

Of a network whose picture one code decides (LSQ at 4 bits) the smaller may turn none.
"""
MARGIN = 10.0
"""So many dB further than with the worse of them in the simulation a picture may be: three times the amplitude."""
SIDE = 24  # of the test picture, low-quality pixels


class Distance(NamedTuple):
    """Of the engine's picture from the simulation's.

    Attributes:
        psnr: in dB.
        levels: the largest difference, in grey levels of 255.
        floor: the PSNR that rounding noise alone gives, the lower one of NOISES.
    """

    psnr: float
    levels: float
    floor: float

    def __str__(self) -> str:
        difference = f"PSNR {self.psnr:.1f} dB, at most {self.levels:.2g} of 255 grey levels"
        return f"{difference}; rounding noise alone: {self.floor:.1f} dB"


def picture_of(model: OneStepSR) -> torch.Tensor:
    """A small test picture as `model` takes it, wider than high: shades, edges and noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE * 4 // 3), indexing="ij")
    shades = torch.stack([rows, columns, ((rows - columns).abs() < 0.3).float()])[None]
    return model.prepare((0.8 * shades + 0.2 * torch.rand(shades.shape, generator=generator)).clamp(0, 1))


@torch.no_grad()
def check_layers(model: OneStepSR, run: Run, image: torch.Tensor, limit: float, path: Path) -> float:
    """The largest error of a layer's input or output, root mean square over root mean square.

    `run` is of a graph that tells them. QartsrError above `limit`, with the first layer for which that is so.
    """
    there, found = run(image), []

    def compare(what: str, mine: torch.Tensor, key: str) -> torch.Tensor:
        theirs = there.get(key)
        if theirs is None:  # a constant, which the graph does not tell
            return mine
        found.append(error := relative_error(mine, theirs))
        if not error <= limit:  # NaN is not
            raise QartsrError(
                f"{path}: not written; {what} differs first from the simulation, by {error:.1e} of its size "
                f"({limit:g} is allowed); this engine cannot run this model, use upscale --checkpoint"
            )
        return theirs.to(mine)

    def entering(name: str, _: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (compare(f"the input of {name}", given[0], f"{name}:in"),)

    def leaving(name: str, _: nn.Module, given: tuple, y: torch.Tensor) -> torch.Tensor:
        return compare(name, y, f"{name}:out")

    with _hooked(model, entering, leaving):
        compare("what follows the last layer", model(image).clamp(0, 1), "image")
    return max(found)


@torch.no_grad()
def check_picture(model: OneStepSR, run: Run, image: torch.Tensor, path: Path) -> Distance:
    """How far the picture of `run` is from `model`'s; QartsrError for MARGIN more than rounding noise explains."""
    mine = model(image).clamp(0, 1)
    floor = min(psnr(mine, _with_noise(model, image, noise)) for noise in NOISES)
    theirs = run(image)["image"]
    found = Distance(psnr(mine, theirs), float((mine - theirs).abs().max()) * 255, floor)
    if not found.psnr >= floor - MARGIN:
        raise QartsrError(
            f"{path}: not written; its picture is too far from the simulation's ({found}); use upscale --checkpoint"
        )
    return found


def _with_noise(model: OneStepSR, image: torch.Tensor, amplitude: float) -> torch.Tensor:
    """The picture of `model` with the relative noise behind every layer."""
    generator = torch.Generator().manual_seed(0)

    def leaving(name: str, _: nn.Module, given: tuple, y: torch.Tensor) -> torch.Tensor:
        return y * (1 + amplitude * torch.randn(y.shape, generator=generator))

    with _hooked(model, None, leaving):
        return model(image).clamp(0, 1)


@contextmanager
def _hooked(model: nn.Module, entering: Callable | None, leaving: Callable) -> Iterator[None]:
    """Hooks before and behind every InferenceLayer; both are given its name first."""
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, InferenceLayer):
            hooks.append(layer.register_forward_hook(partial(leaving, name)))
            if entering is not None:
                hooks.append(layer.register_forward_pre_hook(partial(entering, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def relative_error(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square of the difference over that of `mine`."""
    size = float(mine.double().norm())
    return float((mine.double() - theirs.double()).norm()) / (size or 1.0)
