"""What pictures show, from the images of a run: crops of sample photographs, and training losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.image import psnr_y, read_image, upscale_bicubic
from qartsr_lib.methods import METHODS
from qartsr_lib.show.figures.pictures import Block, Box, Panel
from qartsr_lib.show.tables.render import is_number
from qartsr_lib.show.tables.setting import FULL, Setting, cell_title
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.paper import OUTSIDE

Boxes = Mapping[str, Sequence[int]]
Key = tuple[str, str, int, str]  # method as in tables, backbone, T, bits
History = Sequence[Mapping[str, float]]
DATASET, OURS = "samples", "QArtSR"
_log = logging.getLogger(__name__)


def full_precision_crops(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, settings: Sequence[tuple[str, int]]
) -> list[Block]:
    """Original, then (backbone, timestep) of `settings` in full precision, each with its PSNR-Y."""
    columns = {}
    for name, timestep in settings:
        title, label = ("bicubic", "Bicubic") if name == "bicubic" else (f"{name}, T = {timestep}", "")
        columns[title] = Experiment(name, timestep, *FULL_PRECISION, DATASET, label=label)
    return _columns(run, pairs, boxes, columns)


def quantized_crops(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, backbone: str, timesteps: Sequence[int], bits: str
) -> list[Block]:
    """Original, full precision and MaxMin at `bits` for every timestep of one backbone."""
    columns = {}
    for timestep in timesteps:
        columns[f"FP, T = {timestep}"] = Experiment(backbone, timestep, *FULL_PRECISION, DATASET)
        columns[f"{bits}, T = {timestep}"] = Experiment(backbone, timestep, "maxmin", bits, DATASET)
    return _columns(run, pairs, boxes, columns)


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
        bits: from left to right; those that the run lacks are left out. Without any the list is empty.

    Raises:
        QartsrError: a box that is none, see `_chosen`.
    """
    widths, _ = _there(run, setting, bits, [OURS])
    return [
        photo.block(photo.references(stored=True), [photo.panel(OURS, width, stored=True) for width in widths])
        for photo in _photographs(run, pairs, boxes, setting)[: min(1, len(widths))]
    ]


def figure3_blocks(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting, bits: Sequence[str]
) -> list[Block]:
    """Fig. 3: one photograph; original, bicubic, full precision, outside systems and every method at the last bit
    width that the run has. Arguments as of `figure1_blocks`."""
    lowest, methods = _there(run, setting, _there(run, setting, bits)[0][-1:])
    blocks = []
    for photo in _photographs(run, pairs, boxes, setting)[: len(lowest)]:
        panels = [*photo.references(), *(photo.panel(method, *lowest) for method in methods)]
        half = -(-len(panels) // 2)
        blocks.append(photo.block(panels[:half], panels[half:]))
    return blocks


def figure6_blocks(
    run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting, bits: Sequence[str]
) -> list[Block]:
    """Fig. 6: every photograph of `boxes`; original, full precision, outside systems, every method; a line per bit
    width. Arguments as of `figure1_blocks`."""
    widths, methods = _there(run, setting, bits)
    blocks = []
    for photo in _photographs(run, pairs, boxes, setting) if widths else []:
        references = photo.references(bicubic=False)
        # References fill the left columns from top to bottom, so that methods stand one below the other.
        columns = -(-len(references) // len(widths))
        lines = []
        for row, width in enumerate(widths):
            left = references[row :: len(widths)]
            gap = [None] * (columns - len(left))
            lines.append(left + gap + [photo.panel(method, width) for method in methods])
        blocks.append(photo.block(*lines))
    return blocks


def loss_histories(run: Measured, labels: Sequence[str]) -> Iterator[tuple[str, str, dict[str, History]]]:
    """(name for files, title, label -> records of training) for every model and bit width; of the first seed.

    One that trained fewer than two of `labels`, the legend from top to bottom, has nothing to compare and is left out.
    """
    trained: dict[tuple[str, int, str], dict[str, History]] = {}
    for experiment, history in run.histories.items():
        cell = (experiment.backbone, experiment.timestep, experiment.bits)
        trained.setdefault(cell, {}).setdefault(experiment.label, history)
    for (backbone, timestep, bits), found in trained.items():
        histories = {label: found[label] for label in labels if label in found}
        if len(histories) > 1:
            yield f"{bits}_{backbone}_T{timestep}", f"{cell_title(backbone, timestep)}, {bits}", histories


def read_output(run: Measured, experiment: Experiment | None, image_id: str) -> torch.Tensor | None:
    """An output of the run as (1, 3, H, W) in [0, 1]; None where there is none (a method that diverged)."""
    path = run.images.get((experiment, image_id))
    return read_image(path) if path is not None and path.is_file() else None


def outputs_by_row(run: Measured) -> dict[Key, Experiment]:
    """(method as in tables, backbone, T, bits) -> the first seed's cell, of the photographs."""
    found: dict[Key, Experiment] = {}
    cells = dict.fromkeys(cell for cell, _ in run.images if cell.dataset == DATASET)
    for cell in sorted(cells, key=lambda cell: cell.seed):
        label = cell.label or METHODS.get(cell.method).label
        found.setdefault((label, cell.backbone, cell.timestep, cell.bits), cell)
    return found


@dataclass(frozen=True)
class _Photograph:
    """One photograph, and how its panels are labelled."""

    run: Measured
    outputs: Mapping[Key, Experiment]
    setting: Setting
    pair: Pair
    box: Box
    original: torch.Tensor

    def block(self, *lines: Sequence[Panel | None]) -> Block:
        return Block(f"{self.pair.id}: {self.setting.title}", self.original, self.box, tuple(map(tuple, lines)))

    def references(self, bicubic: bool = True, stored: bool = False) -> list[Panel]:
        """Original, bicubic, full precision, outside systems."""
        panels = [Panel(self.original, "original\n")]
        if bicubic:
            panels.append(_panel("bicubic", upscale_bicubic(read_image(self.pair.lq)), self.original))
        panels.append(self.panel(FULL, FULL_PRECISION[1], stored))
        outside = {key[0]: cell for key, cell in self.outputs.items() if key[1] == OUTSIDE}
        return panels + [
            _panel(name, read_output(self.run, cell, self.pair.id), self.original) for name, cell in outside.items()
        ]

    def panel(self, method: str, bits: str, stored: bool = False) -> Panel:
        timestep = self.setting.timesteps[method]
        key = (method, self.setting.backbone, timestep, bits)
        differ = len(set(self.setting.timesteps.values())) > 1
        name, more = f"{method} {bits}", f"T = {timestep}" * differ
        if stored:  # the longer text takes the second line
            name, more = name + f", {more}" * differ, _stored(self.run, key)
        image = read_output(self.run, self.outputs.get(key), self.pair.id)
        return _panel(name, image, self.original, more, bold=method == OURS)


def _panel(name: str, image: torch.Tensor | None, original: torch.Tensor, more: str = "", bold: bool = False) -> Panel:
    value = math.nan if image is None else psnr_y(image, original)
    quality = f"{value:.2f} dB" if math.isfinite(value) else ""
    return Panel(image, f"{name}\n{', '.join(filter(None, (more, quality)))}", bold)


def _photographs(run: Measured, pairs: Sequence[Pair], boxes: Boxes, setting: Setting) -> list[_Photograph]:
    outputs = outputs_by_row(run)
    return [_Photograph(run, outputs, setting, *chosen) for chosen in _chosen(pairs, boxes)]


def _columns(run: Measured, pairs: Sequence[Pair], boxes: Boxes, columns: Mapping[str, Experiment]) -> list[Block]:
    """Each photograph in the order of the pairs: the original, and each column's output; none for a run without any."""
    blocks = []
    if not {cell for cell, _ in run.images} & {*columns.values()}:
        return blocks
    for pair, box, original in sorted(_chosen(pairs, boxes), key=lambda chosen: pairs.index(chosen[0])):
        panels = [_panel(name, read_output(run, cell, pair.id), original) for name, cell in columns.items()]
        blocks.append(Block(pair.id, original, box, ((Panel(original, "original\n"), *panels),)))
    return blocks


def _chosen(pairs: Sequence[Pair], boxes: Boxes) -> Iterator[tuple[Pair, Box, torch.Tensor]]:
    """The photographs that `boxes` names and that are there, in its order; else the first one with a box in the middle.

    Where a photograph is too small for its box (profiles' `finetune_side`), its middle is shown, and that is said.

    Raises:
        QartsrError: a box that is none.
    """
    known = {pair.id: pair for pair in pairs}
    for name in [name for name in boxes if name in known] or list(known)[:1]:
        original = read_image(known[name].hr)
        height, width = original.shape[-2:]
        side = max(1, round(0.3 * min(height, width)))
        middle = Box((height - side) // 2, (width - side) // 2, side)
        numbers = boxes.get(name, astuple(middle))
        if len(numbers) != 3 or min(numbers) < 0 or not numbers[-1]:
            raise QartsrError(f"CROPS[{name!r}] is {list(numbers)}; give top, left and size in pixels")
        box = Box(*numbers)
        if not box.inside(height, width):
            told = f"CROPS[{name!r}] is {list(numbers)}, outside of the {width}x{height} photograph"
            _log.warning("%s: its middle is shown", told)
            box = middle
        yield known[name], box, original


def _there(
    run: Measured, setting: Setting, bits: Sequence[str], methods: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """(bit widths, methods) of those asked for, all methods by default, with a row for the photographs."""
    rows = setting.rows(run.table[(run.table["dataset"] == DATASET) & run.table["bits"].isin(list(bits))])
    rows = rows[rows["method"].isin(methods or list(setting.timesteps))]
    return [w for w in bits if w in set(rows["bits"])], [m for m in setting.timesteps if m in set(rows["method"])]


def _stored(run: Measured, key: Key) -> str:
    """Stored bits per weight as text; empty when unknown."""
    rows = run.table.set_index(["method", "backbone", "timestep", "bits"])["w_bits_effective"]
    values = rows[rows.index == key]
    return f"{float(values.iloc[0]):.2f} bits/weight" if len(values) and is_number(values.iloc[0]) else ""
