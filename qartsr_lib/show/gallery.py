"""Make figures/<profile>/gallery: whole upscaled sample photographs, for the sliders of the web page.

    index.json                            photographs, settings, one entry per picture
    chelsea/original.webp
    chelsea/QArtSR-W4A4-embedded-T1.webp

A picture belongs to a model (backbone, T, method, bits), so settings that share a model share its file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.samples import photographs
from qartsr_lib.images.image import psnr_y, read_image, to_uint8, upscale_bicubic
from qartsr_lib.show.figures.style import webp, write_picture
from qartsr_lib.show.tables.pictures import DATASET, outputs_by_row, read_output
from qartsr_lib.show.tables.setting import Setting
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.paper import BICUBIC

Index = dict[str, list[dict[str, Any]]]
#: Part of the index -> fields in which no two of its entries are alike.
SAME = {
    "photographs": ("id",),
    "settings": ("name",),
    "pictures": ("photograph", "backbone", "timestep", "method", "bits"),
}
#: Of WebP: artefacts of quantization stay as they are, and a photograph of 320 pixels takes some 30 kB.
QUALITY = 84


def write_gallery(
    run: Measured, pairs: Sequence[Pair], settings: Sequence[Setting], wanted: Sequence[str], keep: bool = False
) -> Path:
    """Write the pictures of every method of `settings`, and the index; pictures that it does not name are removed.

    Args:
        run: Table 3's. Of several seeds the first is shown.
        pairs: photographs of the data set "samples".
        wanted: photographs by id; those that the run lacks are left out, the first pair is taken where all are.
        keep: what the present index names and this run does not make stays: for a part of Table 3.

    Raises:
        QartsrError: with `keep`, the present index is damaged.
    """
    folder = paths.figures_dir(run.profile) / "gallery"
    path = folder / "index.json"
    old = read_index(path) if keep and path.is_file() else {part: [] for part in SAME}
    chosen = [pair for name in wanted for pair in pairs if pair.id == name] or list(pairs)[:1]
    licences = {photograph.id: photograph.licence for photograph in photographs("test")}
    known = {item["name"]: item.get("timesteps", {}) for item in old["settings"]}  # of all parts
    new = {
        "photographs": [{"id": pair.id, "licence": licences.get(pair.id, "")} for pair in chosen],
        "settings": [
            {"name": item.name, "title": item.title, "backbone": item.backbone}
            | {"timesteps": known.get(item.name, {}) | dict(item.timesteps)}
            for item in settings
        ],
        "pictures": [picture for pair in chosen for picture in _pictures(run, pair, settings, folder)],
    }
    # New entries take the place of old ones of the same thing; further ones come last.
    index = {
        part: list({itemgetter(*same)(entry): entry for entry in (*old[part], *new[part])}.values())
        for part, same in SAME.items()
    }
    write_text(path, json.dumps(index, indent=1) + "\n")
    named = {picture["file"] for picture in index["pictures"]}
    for file in folder.rglob("*.webp"):
        if file.relative_to(folder).as_posix() not in named:
            file.unlink()
    return path


def read_index(path: Path) -> Index:
    """The index in `path`; a QartsrError names a damaged one."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for part, same in SAME.items():
            for entry in index[part]:
                itemgetter(*same)(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise QartsrError(f"{path}: is not a gallery's index; run notebook 05 again") from error
    return index


def _pictures(run: Measured, pair: Pair, settings: Sequence[Setting], folder: Path) -> Iterator[dict[str, Any]]:
    """Entries of the index: fields of SAME, psnr_y of the whole picture in dB before WebP (None for the original and
    where there is no picture), run_id ("" where no network was run), file ("" where a method diverged)."""
    original = read_image(pair.hr)

    def entry(model: tuple[str, int, str, str], run_id: str, name: str, image: torch.Tensor | None) -> dict[str, Any]:
        value = math.nan if image is None or image is original else psnr_y(image, original)
        found = dict(zip(SAME["pictures"], (pair.id, *model), strict=True))
        file = "" if image is None else _save(folder, pair.id, name, image)
        return found | {"psnr_y": round(value, 4) if math.isfinite(value) else None, "run_id": run_id, "file": file}

    yield entry(("", 0, "original", ""), "", "original", original)
    yield entry(("", 0, "bicubic", ""), "", "bicubic", upscale_bicubic(read_image(pair.lq)))
    experiments = outputs_by_row(run)
    table = run.table[(run.table["dataset"] == DATASET) & (run.table["backbone"] != BICUBIC)]
    rows = pd.concat([item.rows(table)[[*SAME["pictures"][1:], "run_id"]] for item in settings]).drop_duplicates()
    for backbone, timestep, method, bits, run_id in rows.itertuples(index=False, name=None):
        image = read_output(run, experiments.get((method, backbone, timestep, bits)), pair.id)
        yield entry((backbone, timestep, method, bits), run_id, f"{method}_{bits}_{backbone}_T{timestep}", image)


def _save(folder: Path, photograph: str, name: str, image: torch.Tensor) -> str:
    """Write one picture; returns its place in the gallery."""
    file = Path(photograph, _file_name(name))
    write_picture(folder / file, webp(Image.fromarray(to_uint8(image)), QUALITY))
    return file.as_posix()


def _file_name(name: str) -> str:
    """With a hash where a name has signs of its own: EDSR and EDSR+ are two systems."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
    own = re.search(r"[^A-Za-z0-9._ ,()\[\]-]", name)
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.webp" if own else f"{plain}.webp"
