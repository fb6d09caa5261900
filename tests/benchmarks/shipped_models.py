"""Makes the quantized models that are shipped, and their card: `python -m tests.benchmarks.shipped_models DATA_ROOT`.

The study's own method without training, calibrated as in `results/study`. What the card says of BSDS500/val was
measured on the packed files themselves.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base import provenance
from qartsr_lib.base.files import sha256, write_text
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.shipped import FOLDER, SHIPPED, shipped_model
from qartsr_lib.deploy.zipped import plain
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.image import psnr_y
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import BEST
from qartsr_lib.show.tables.render import to_markdown
from qartsr_lib.study.experiments.setting_grids import setting_label
from qartsr_lib.study.experiments.trials import BACKBONE, CHOICE, TIMESTEP, validation_pairs
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.results import read_table

METHOD = "groupwise-untrained"
CARD = """# Model card: the quantized models

Models of `qartsr upscale --model NAME`: {backbone} at T = {timestep} ([its card](../embedded/README.md)), quantized by
{label}. None is OSEDiff. Calibrated on {crops} crops of {calibration}; layers of the identity path stay at 8 bits.

## On BSDS500/val (the {images} central crops of 128x128 on which every choice rests), PSNR-Y in dB

{validation}

## On the test sets, beside full precision (`results/study/table3_settings.csv`, first seed)

{tests}

Made by `python -m tests.benchmarks.shipped_models DATA_ROOT` at revision {revision} on {device}. Other processors round
sums elsewhere, so the same command there gives files that differ in some codes.
"""


@torch.no_grad()
def measured(model, backbone, pairs) -> dict[str, str]:
    """Mean PSNR-Y to full precision's image and to the original, and full precision's own."""
    images = [(model.upscale(lq), backbone.upscale(lq), hr) for lq, hr in pairs.values()]
    means = {
        "to full precision": sum(psnr_y(image, full) for image, full, _ in images),
        "to the original": sum(psnr_y(image, hr) for image, _, hr in images),
        "full precision's": sum(psnr_y(full, hr) for _, full, hr in images),
    }
    return {name: f"{total / len(images):.2f}" for name, total in means.items()}


def test_rows(setting: str) -> pd.DataFrame:
    """Values of METHOD and full precision on the test sets, with the runs they are from."""
    rows = read_table("study", "table3_settings")
    chosen = rows["method"].isin([setting, "FP"]) & (rows["backbone"] == BACKBONE) & (rows["timestep"] == TIMESTEP)
    rows = rows[chosen].astype({"value": float})
    table = rows.pivot_table("value", ["dataset", "bits"], "metric", sort=False).map("{:.4g}".format)
    return table.assign(run=rows.groupby(["dataset", "bits"], sort=False)["run_id"].first()).reset_index()


def main(data_root: str) -> None:
    root, study = Path(data_root), replace(get_profile("study"), setting=BEST.options)
    backbone, calibration = load_backbone(BACKBONE, TIMESTEP), calibration_list(study, root)
    pairs, rows, method = validation_pairs(root, CHOICE), [], METHODS.get(METHOD)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, bits in SHIPPED.items():
        built = method.build(backbone, bits, calibration.images, **dict(training_options(METHOD, bits, study)))
        path = shipped_model(name)
        save_packed(built.backbone, path)
        with plain(path) as unzipped:
            sizes = {"MB": path.stat().st_size, "MB without gzip": unzipped.stat().st_size}
        stored = {"bits per weight": f"{built.w_bits_effective:.2f}"}
        stored |= {name: f"{size / 1e6:.2f}" for name, size in sizes.items()}
        own = {"name": name} | stored | measured(load_packed(path), backbone, pairs)
        rows.append(own | {"SHA-256": sha256(path)[:16]})
        print(rows[-1], flush=True)
    setting = setting_label(METHOD, BEST)
    said = {"backbone": BACKBONE, "timestep": TIMESTEP, "label": setting, "crops": len(calibration.images)}
    said |= {"calibration": calibration.name, "images": len(pairs), "validation": to_markdown(pd.DataFrame(rows))}
    said |= {"tests": to_markdown(test_rows(setting)), "revision": provenance.git_state()["revision"]}
    write_text(FOLDER / "README.md", CARD.format(**said, device=provenance.environment("cpu")["device"]))


if __name__ == "__main__":
    main(sys.argv[1])
