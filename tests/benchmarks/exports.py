"""How far exported models are from the simulation: `python -m tests.benchmarks.exports [W4A4 onnx qartsr ...]`, hours.

Every method of Table 3 at the bit widths and in the formats of `export.FORMATS`, those that are named (all of a kind
where none is), on the small picture that the export itself checks with. results/study/exports.csv gets a row as soon as
it is measured and keeps the others; what cannot be exported has the reason in its row. exports.json beside it says with
what the last ones were made.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base import paths, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.deploy.export import FORMATS, save_exported
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study.profiles import get_profile

BACKBONE, TIMESTEP, TRAIN_IMAGES = "embedded-scaled", 1, 4
BITS = ("W4A4", "W8A8", "W2A2")
NAMES = (
    *("maxmin", "lsq", "lsq-qat", "q-dm", "efficientdm", "passionsr", "svdquant", "svdquant-released", "qartsr"),
    "groupwise-untrained",
)
KEY = ["method", "bits", "format"]
COLUMNS = [*KEY, "psnr", "noise_psnr", "largest_levels", "megabytes", "seconds", "revision", "note"]


def exported(model, folder: Path, name: str) -> dict[str, object]:
    """What a row has of one model in the format `name`."""
    started, path = time.perf_counter(), folder / f"model{FORMATS[name].ending}"
    try:
        found = save_exported(model, path, name)
    except QartsrError as error:
        return {"note": str(error).removeprefix(f"{path}: ")}
    size = sum(file.stat().st_size for file in folder.iterdir())
    told = {"psnr": f"{found.psnr:.2f}", "noise_psnr": f"{found.floor:.2f}", "largest_levels": f"{found.levels:.3g}"}
    return told | {"megabytes": f"{size / 1e6:.2f}", "seconds": f"{time.perf_counter() - started:.0f}"}


def main(words: list[str]) -> None:
    formats = [name for name in FORMATS if name in words] or list(FORMATS)
    names = [name for name in NAMES if name in words] or list(NAMES)
    widths = [word for word in words if word not in (*FORMATS, *NAMES)] or list(BITS)
    path = paths.results_dir("study") / "exports.csv"
    profile = get_profile("tiny", train_images=TRAIN_IMAGES)
    images, revision = calibration_list(profile).images, provenance.git_state()["revision"]
    packages = sorted({package for kind in FORMATS.values() for package in kind.packages})
    about = {
        "backbone": BACKBONE,
        "timestep": TIMESTEP,
        "settings": {"calibration": profile.calibration, "crops": len(images), "train_images": TRAIN_IMAGES},
        "engines": {package: version(package) for package in packages},
        "git": provenance.git_state(),
        "environment": provenance.environment("cpu"),
    }
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    for bits in widths:
        for method in names:
            built = METHODS.get(method)
            options = dict(training_options(method, bits, profile))
            model = built.build(load_backbone(BACKBONE, TIMESTEP), bits, images, **options).backbone
            for name in formats:
                with tempfile.TemporaryDirectory() as folder:
                    row = {"method": method, "bits": bits, "format": name, "revision": revision[:7]}
                    row |= exported(model, Path(folder), name)
                print(row, flush=True)
                there = pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame(columns=COLUMNS)
                rows = pd.concat([there, pd.DataFrame([row], columns=COLUMNS)]).drop_duplicates(KEY, keep="last")
                write_text(path, rows.to_csv(index=False, lineterminator="\n"))
            gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
