"""Rows of `figures.comparison_grid` from the images of a run; only sample photographs are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from qartsr_lib.datasets.base import Pair
from qartsr_lib.fidelity import luma, psnr
from qartsr_lib.figures.grids import Box
from qartsr_lib.images import read_image
from qartsr_lib.study import FULL_PRECISION, Experiment, TableRun

Row = tuple[str, torch.Tensor, Box, dict[str, torch.Tensor]]


def full_precision_crops(
    run: TableRun, pairs: Sequence[Pair], boxes: Mapping[str, Sequence[int]], settings: Sequence[tuple[str, int]]
) -> list[Row]:
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
) -> list[Row]:
    """Original, full precision and MaxMin at `bits` for every timestep of one backbone."""
    columns = {}
    for timestep in timesteps:
        columns[f"FP, T = {timestep}"] = Experiment(backbone, timestep, *FULL_PRECISION, "samples")
        columns[f"{bits}, T = {timestep}"] = Experiment(backbone, timestep, "maxmin", bits, "samples")
    return _rows(run, pairs, boxes, columns)


def method_crops(
    run: TableRun,
    pairs: Sequence[Pair],
    boxes: Mapping[str, Sequence[int]],
    cells: Mapping[str, tuple[str, str, int, str]],
) -> list[Row]:
    """Original, full precision of the first cell's model, then one column per cell.

    Args:
        cells: label -> (method, backbone, T, bits); the first seed is shown.
    """
    _, backbone, timestep, _ = next(iter(cells.values()))
    columns = {"FP": Experiment(backbone, timestep, *FULL_PRECISION, "samples")}
    known = {(e.method, e.backbone, e.timestep, e.bits): e for e, _ in reversed(run.images) if e.dataset == "samples"}
    columns |= {label: known[cell] for label, cell in cells.items() if cell in known}
    return _rows(run, pairs, boxes, columns)


def _rows(
    run: TableRun, pairs: Sequence[Pair], boxes: Mapping[str, Sequence[int]], columns: Mapping[str, Experiment]
) -> list[Row]:
    rows = []
    for pair in pairs:
        if pair.id not in boxes and len(pairs) > 1:
            continue
        original = read_image(pair.hr)
        box = Box(*boxes.get(pair.id, (64, 64, 96)))
        images = {"original": original}
        for label, experiment in columns.items():
            image = read_image(run.png_path(experiment, pair.id))
            images[f"{label}\n{psnr(luma(image), luma(original)):.2f} dB"] = image
        rows.append((pair.id, original, box, images))
    return rows
