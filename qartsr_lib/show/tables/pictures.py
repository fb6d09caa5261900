"""What the paper's Figs. 1, 3 and 6 show, from the images of a run; only sample photographs are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.image import read_image, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.show.figures.blocks import Block, Panel
from qartsr_lib.show.figures.grids import Box
from qartsr_lib.show.tables.crops import chosen_boxes, psnr_text, read_output
from qartsr_lib.show.tables.render import is_number
from qartsr_lib.show.tables.settings import FULL, Setting
from qartsr_lib.study.cells import Measured
from qartsr_lib.study.contrasts import NOT_QUANTIZED
from qartsr_lib.study.evaluator import Experiment
from qartsr_lib.study.paper import OUTSIDE

Boxes = Mapping[str, Sequence[int]]
Key = tuple[str, str, int, str]  # method as in tables, backbone, T, bits
DATASET, OURS = "samples", "QArtSR"


def figure1_blocks(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting, bits: Sequence[str]
) -> list[Block]:
    """Fig. 1: one photograph; original, bicubic, full precision and outside systems, below QArtSR at each bit width.

    Under each crop stand PSNR-Y of the whole photograph and the stored bits per weight.

    Args:
        run: Table 3's.
        pairs: photographs of the data set "samples".
        boxes: photograph -> top, left, size of the crop in HR pixels; the first that is there is shown,
            a box in the middle of the first photograph when none is.
        setting: gives the models.
        bits: of QArtSR, from left to right; those that the run lacks are left out.

    Returns:
        One block; none when the run has no photograph from QArtSR.

    Raises:
        QartsrError: a box that does not lie in its photograph.
    """
    widths = [width for width in bits if OURS in _methods(run, setting, [width])]
    blocks = []
    for photo in _photographs(run, pairs, boxes, setting)[:1] if widths else []:
        ours = tuple(photo.panel(OURS, width, stored=True) for width in widths)
        blocks.append(photo.block((photo.references(stored=True), ours)))
    return blocks


def figure3_blocks(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting, bits: Sequence[str]
) -> list[Block]:
    """Fig. 3: one photograph; original, full precision, outside systems and every method at one low bit width.

    Args: see `figure1_blocks`; the last of `bits` that the run has is shown, and the list is empty without any.
    """
    lowest = [width for width in bits if _methods(run, setting, [width])][-1:]
    methods = _methods(run, setting, lowest)
    blocks = []
    for photo in _photographs(run, pairs, boxes, setting)[:1] if methods else []:
        panels = [*photo.references(), *(photo.panel(method, *lowest) for method in methods)]
        half = -(-len(panels) // 2)
        blocks.append(photo.block((tuple(panels[:half]), tuple(panels[half:]))))
    return blocks


def figure6_blocks(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting, bits: Sequence[str]
) -> list[Block]:
    """Fig. 6: every photograph of `boxes`; original, full precision, outside systems, every method; a line per width.

    Args: see `figure1_blocks`; bit widths that the run lacks are left out.
    """
    widths = [width for width in bits if _methods(run, setting, [width])]
    methods = _methods(run, setting, widths)
    blocks = []
    for photo in _photographs(run, pairs, boxes, setting) if methods else []:
        references = photo.references(bicubic=False)
        # References fill the left columns from top to bottom, so that methods stand one below the other.
        lines = [[*references[row :: len(widths)]] for row in range(len(widths))]
        columns = max(len(line) for line in lines)
        lines = [
            (*line, *[None] * (columns - len(line)), *(photo.panel(method, width) for method in methods))
            for line, width in zip(lines, widths, strict=True)
        ]
        blocks.append(photo.block(tuple(lines)))
    return blocks


@dataclass(frozen=True)
class _Photograph:
    """One photograph, and how its panels are labelled."""

    run: Measured
    outputs: Mapping[Key, Experiment]
    setting: Setting
    pair: Pair
    box: Box
    original: torch.Tensor

    def block(self, lines: tuple[tuple[Panel | None, ...], ...]) -> Block:
        return Block(f"{self.pair.id}: {self.setting.title}", self.original, self.box, lines)

    def references(self, bicubic: bool = True, stored: bool = False) -> tuple[Panel, ...]:
        """Original, bicubic, full precision, outside systems."""
        panels = [Panel(self.original, "original\n")]
        if bicubic:
            panels.append(self._panel("bicubic", upscale_bicubic(read_image(self.pair.lq))))
        panels.append(self.panel(FULL, NOT_QUANTIZED, stored))
        outside = [key for key in self.outputs if key[1] == OUTSIDE]
        return (*panels, *(self._panel(key[0], self._read(key)) for key in outside))

    def panel(self, method: str, bits: str, stored: bool = False) -> Panel:
        timestep = self.setting.timesteps[method]
        key = (method, self.setting.backbone, timestep, bits)
        differ = len(set(self.setting.timesteps.values())) > 1
        model = f"T = {timestep}" if differ else ""
        name, more = (f"{method} {bits}", model)
        if stored:  # the longer text takes the second line
            name, more = (", ".join(filter(None, (name, model))), _stored(self.run, key))
        return self._panel(name, self._read(key), more, bold=method == OURS)

    def _panel(self, name: str, image: torch.Tensor | None, more: str = "", bold: bool = False) -> Panel:
        below = ", ".join(text for text in (more, psnr_text(image, self.original)) if text)
        return Panel(image, f"{name}\n{below}", bold)

    def _read(self, key: Key) -> torch.Tensor | None:
        experiment = self.outputs.get(key)
        return None if experiment is None else read_output(self.run, experiment, self.pair.id)


def _photographs(run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting) -> list[_Photograph]:
    outputs = outputs_by_row(run)
    originals = {pair.id: read_image(pair.hr) for pair in pairs}
    chosen = chosen_boxes(pairs, boxes, {name: tuple(image.shape[-2:]) for name, image in originals.items()})
    return [_Photograph(run, outputs, setting, pair, box, originals[pair.id]) for pair, box in chosen]


def outputs_by_row(run: Measured) -> dict[Key, Experiment]:
    """(method as in tables, backbone, T, bits) -> the first seed's cell, of the photographs."""
    found: dict[Key, Experiment] = {}
    cells = dict.fromkeys(cell for cell, _ in run.images if cell.dataset == DATASET)
    for cell in sorted(cells, key=lambda cell: cell.seed):
        label = cell.label or METHODS.get(cell.method).label
        found.setdefault((label, cell.backbone, cell.timestep, cell.bits), cell)
    return found


def _methods(run: Measured, setting: Setting, bits: Sequence[str]) -> list[str]:
    """Methods of the setting with a row for the photographs at one of the bit widths, diverged or not."""
    rows = run.table[run.table["dataset"] == DATASET]
    known = set(zip(rows["method"], rows["backbone"], rows["timestep"], rows["bits"], strict=True))
    return [
        method
        for method, timestep in setting.timesteps.items()
        if any((method, setting.backbone, timestep, width) in known for width in bits)
    ]


def _stored(run: Measured, key: Key) -> str:
    """Stored bits per weight as text; empty when unknown."""
    table = run.table
    same = [
        table[column] == value for column, value in zip(("method", "backbone", "timestep", "bits"), key, strict=True)
    ]
    values = table.loc[same[0] & same[1] & same[2] & same[3], "w_bits_effective"]
    return f"{float(values.iloc[0]):.2f} bits/weight" if len(values) and is_number(values.iloc[0]) else ""
