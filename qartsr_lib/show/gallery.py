"""Make the gallery: whole upscaled sample photographs as result files, for the sliders of the web page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from qartsr_lib.base.files import write_atomically, write_text
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.samples import photographs
from qartsr_lib.images.image import psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.show.gallery_index import BICUBIC, INDEX, ORIGINAL, SAME, Index, Picture, gallery_dir, read_index
from qartsr_lib.show.tables.crops import read_output
from qartsr_lib.show.tables.pictures import DATASET, outputs_by_row
from qartsr_lib.show.tables.settings import Setting, cell_name
from qartsr_lib.study import paper as papers
from qartsr_lib.study.table_run import TableRun

#: Of WebP: artefacts of quantization stay as they are, and a photograph of 320 pixels takes some 30 kB.
QUALITY = 84


def write_gallery(
    run: TableRun, pairs: Sequence[Pair], settings: Sequence[Setting], wanted: Sequence[str], keep: bool = False
) -> Path:
    """Write the pictures of every method of `settings`, and the index; pictures that it does not name are removed.

    Args:
        run: Table 3's. Of several seeds the first is shown.
        pairs: photographs of the data set "samples".
        settings: give the models.
        wanted: photographs by id; those that the run lacks are left out, the first pair is taken where all are.
        keep: what the present index names and this run does not make stays: for a part of Table 3.

    Returns:
        The index.

    Raises:
        QartsrError: with `keep`, the present index is damaged.
    """
    folder = gallery_dir(run.profile)
    chosen = [pair for name in wanted for pair in pairs if pair.id == name] or list(pairs)[:1]
    pictures = [picture for pair in chosen for picture in _pictures(run, pair, settings, folder)]
    licences = {photograph.id: photograph.licence for photograph in photographs("test")}
    made = {
        "photographs": [{"id": pair.id, "licence": licences.get(pair.id, "")} for pair in chosen],
        "settings": [
            {"name": item.name, "title": item.title, "backbone": item.backbone, "timesteps": dict(item.timesteps)}
            for item in settings
        ],
        "pictures": [asdict(picture) for picture in pictures],
    }
    path = folder / INDEX
    index = _merged(read_index(path), made) if keep and path.is_file() else made
    write_text(path, json.dumps(index, indent=1) + "\n")
    named = {picture["file"] for picture in index["pictures"]}
    for file in folder.rglob("*.webp"):
        if file.relative_to(folder).as_posix() not in named:
            file.unlink()
    return path


def _merged(old: Index, new: Index) -> Index:
    """Entries of `new` take the place of those that `old` has of the same thing; further ones come last."""
    merged = {}
    for part, same in SAME.items():
        entries = {tuple(entry[name] for name in same): entry for entry in (*old[part], *new[part])}
        merged[part] = list(entries.values())
    return merged


def _pictures(run: TableRun, pair: Pair, settings: Sequence[Setting], folder: Path) -> Iterator[Picture]:
    original = read_image(pair.hr)
    enlarged = upscale_bicubic(read_image(pair.lq))
    yield Picture(pair.id, "", 0, ORIGINAL, "", None, "", _save(folder, pair.id, ORIGINAL, original))
    yield Picture(
        pair.id, "", 0, BICUBIC, "", _shown(psnr_y(enlarged, original)), "", _save(folder, pair.id, BICUBIC, enlarged)
    )
    experiments = outputs_by_row(run)
    for backbone, timestep, method, bits, run_id in _rows(run, settings):
        experiment = experiments.get((method, backbone, timestep, bits))
        image = None if experiment is None else read_output(run, experiment, pair.id)
        name = f"{method}_{bits}_{cell_name(backbone, timestep)}"
        file = "" if image is None else _save(folder, pair.id, name, image)
        value = None if image is None else _shown(psnr_y(image, original))
        yield Picture(pair.id, backbone, timestep, method, bits, value, run_id, file)


def _rows(run: TableRun, settings: Sequence[Setting]) -> list[tuple[str, int, str, str, str]]:
    """(backbone, T, method, bits, run_id) of every row of the photographs in one of the settings, once each."""
    table = run.table[run.table["dataset"] == DATASET]
    table = table[table["backbone"] != papers.BICUBIC]  # its picture is there already, of no row
    columns = ["backbone", "timestep", "method", "bits", "run_id"]
    rows = [row for item in settings for row in item.rows(table)[columns].itertuples(index=False, name=None)]
    return list(dict.fromkeys(rows))


def _shown(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _save(folder: Path, photograph: str, name: str, image: torch.Tensor) -> str:
    """Write one picture; returns its place in the gallery."""
    file = Path(photograph, re.sub(r"[^A-Za-z0-9.]+", "-", name.replace("_", " ")).strip("-") + ".webp")
    array = to_uint8(image)
    options = {"format": "WEBP", "quality": QUALITY, "method": 6}
    write_atomically(folder / file, lambda temporary: Image.fromarray(array).save(temporary, **options))
    return file.as_posix()
