"""Rows of `figures.comparison_grid` from the images of a run; only sample photographs are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.image import psnr_y, read_image
from qartsr_lib.show.figures.grids import Box
from qartsr_lib.study.experiment import FULL_PRECISION, Experiment
from qartsr_lib.study.table_run import TableRun

Crops = tuple[str, torch.Tensor, Box, dict[str, torch.Tensor | None]]


def full_precision_crops(
    run: TableRun, pairs: Sequence[Pair], boxes: Mapping[str, Sequence[int]], settings: Sequence[tuple[str, int]]
) -> list[Crops]:
    """Original, then (backbone, timestep) of `settings` in full precision, each with its PSNR-Y."""
    columns = {
        "bicubic" if name == "bicubic" else f"{name}\nT = {timestep}": Experiment(
            name, timestep, *FULL_PRECISION, "samples", label="Bicubic" if name == "bicubic" else ""
        )
        for name, timestep in settings
    }
    return _rows(run, pairs, boxes, columns)


def quantized_crops(
    run: TableRun,
    pairs: Sequence[Pair],
    boxes: Mapping[str, Sequence[int]],
    backbone: str,
    timesteps: Sequence[int],
    bits: str,
) -> list[Crops]:
    """Original, full precision and MaxMin at `bits` for every timestep of one backbone."""
    columns = {}
    for timestep in timesteps:
        columns[f"FP, T = {timestep}"] = Experiment(backbone, timestep, *FULL_PRECISION, "samples")
        columns[f"{bits}, T = {timestep}"] = Experiment(backbone, timestep, "maxmin", bits, "samples")
    return _rows(run, pairs, boxes, columns)


def chosen_boxes(
    pairs: Sequence[Pair], boxes: Mapping[str, Sequence[int]], sizes: Mapping[str, tuple[int, int]]
) -> list[tuple[Pair, Box]]:
    """The photographs that `boxes` names and that are there, in its order; else the first one with a box in the middle.

    Args:
        boxes: photograph -> top, left, size in HR pixels.
        sizes: photograph -> height, width.

    Raises:
        QartsrError: a box that does not lie in its photograph.
    """
    known = {pair.id: pair for pair in pairs}
    chosen = [(known[name], _box(name, numbers, sizes[name])) for name, numbers in boxes.items() if name in known]
    return chosen or [(pair, _middle(*sizes[pair.id])) for pair in list(pairs)[:1]]


def read_output(run: TableRun, experiment: Experiment, image_id: str) -> torch.Tensor | None:
    """An output of the run as (1, 3, H, W) in [0, 1]; None where there is none (a method that diverged)."""
    path = run.images.get((experiment, image_id))
    return read_image(path) if path is not None and path.is_file() else None


def psnr_text(image: torch.Tensor | None, original: torch.Tensor) -> str:
    """PSNR-Y in dB as it stands at a crop; empty where there is none."""
    value = math.nan if image is None else psnr_y(image, original)
    return f"{value:.2f} dB" if math.isfinite(value) else ""


def _box(name: str, numbers: Sequence[int], size: tuple[int, int]) -> Box:
    height, width = size
    if len(numbers) != 3:
        raise QartsrError(f"CROPS[{name!r}] is {list(numbers)}; give top, left and size in pixels")
    box = Box(*numbers)
    inside = box.size > 0 <= min(box.top, box.left) and box.top + box.size <= height and box.left + box.size <= width
    if not inside:
        raise QartsrError(f"CROPS[{name!r}] is {list(numbers)}, outside of the {width}x{height} photograph; move it")
    return box


def _middle(height: int, width: int) -> Box:
    side = max(1, round(0.3 * min(height, width)))
    return Box((height - side) // 2, (width - side) // 2, side)


def _rows(
    run: TableRun, pairs: Sequence[Pair], boxes: Mapping[str, Sequence[int]], columns: Mapping[str, Experiment]
) -> list[Crops]:
    originals = {pair.id: read_image(pair.hr) for pair in pairs}
    rows = []
    chosen = chosen_boxes(pairs, boxes, {name: tuple(image.shape[-2:]) for name, image in originals.items()})
    for pair, box in sorted(chosen, key=lambda item: pairs.index(item[0])):
        original = originals[pair.id]
        images: dict[str, torch.Tensor | None] = {"original": original}
        for label, experiment in columns.items():
            image = read_output(run, experiment, pair.id)
            images[f"{label}\n{psnr_text(image, original) or 'n/a'}"] = image
        rows.append((pair.id, original, box, images))
    return rows
