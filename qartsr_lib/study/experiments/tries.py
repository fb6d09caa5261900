"""The same learning-rate tries for every trained method: `python -m qartsr_lib.study.experiments.tries`.

Each method is trained with each of FIRST_LOOK on its own published rates and judged on BSDS500/val by
PSNR and perceptual distance to full precision, both alike (`choose`); `--look second` then tries
SECOND_LOOK around each winner. No test set is looked at. The tries are results/study/tries.csv; the
winners, one for each bit width, are methods/rates.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.features import FeatureDistance, pretrained_distance
from qartsr_lib.base import paths
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import remembered_sha256, write_text
from qartsr_lib.base.machine import positive
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import central_crop, list_images, psnr_y, read_image
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import CHOSEN
from qartsr_lib.study.experiments.rate_choice import FIRST_LOOK, choose
from qartsr_lib.study.measured import Measured, measure_cells
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.results import read_measurement
from qartsr_lib.training.finetuning.losses import perceptual_and_squared

#: Times the winner of the first look: half a decade down and up.
SECOND_LOOK = (0.3, 3)
#: The backbone whose UNet does its share at T = 1: the fair one for comparing methods.
BACKBONE, TIMESTEP = "embedded-scaled", 1
BITS = ("W4A4", "W2A2")
VALIDATION, PHOTOGRAPHS, CROP = "BSDS500/val", 12, 128

Try = tuple[str, str, float]


def trained_methods() -> list[str]:
    """Names of all registered methods that train."""
    return [name for name in METHODS if METHODS.get(name).trains]


def checked_methods(names: Sequence[str]) -> list[str]:
    """`names`, all of trained methods.

    Raises:
        QartsrError: one is no method, or does not train.
    """
    for name in names:
        if not METHODS.get(name).trains:
            raise QartsrError(f"--methods {name}: does not train; choose from {', '.join(trained_methods())}")
    return list(names)


def first_look(methods: Sequence[str]) -> list[Try]:
    """The tries that every method gets."""
    return list(itertools.product(methods, BITS, FIRST_LOOK))


def second_look(methods: Sequence[str], tries: pd.DataFrame) -> list[Try]:
    """As many again for every method, around what it won with in the first look.

    Args:
        tries: of `run_tries`, the first look of all `methods` among them.
    """
    winners = choose(tries[tries["factor"].isin(FIRST_LOOK)])
    absent = [method for method in methods if method not in winners]
    if absent:
        raise QartsrError(f"--look second: no first look at {', '.join(absent)} in tries.csv; run --look first")
    around = itertools.product(methods, BITS, SECOND_LOOK)
    return [(method, bits, round(share * winners[method][bits], 3)) for method, bits, share in around]


def run_tries(cells: Sequence[Try], images: int, data_root: Path) -> Measured:
    """Rows dataset, method, bits, factor, image, psnr_fp, psnr_hr, feature_distance, image_loss; cached cell by cell.

    Args:
        cells: (name of a trained method, bits, factor on its published rates).
        images: budget of one try.
        data_root: folder that holds BSDS500/train (calibration) and BSDS500/val.
    """
    study = get_profile("study")
    shared = {"batch": study.train_batch, "image_loss": study.image_loss, "teacher": study.teacher}
    calibration = calibration_list(study, data_root)
    files = list_images(data_root / VALIDATION)[:PHOTOGRAPHS]
    pairs = {path.stem: _pair(path, seed) for seed, path in enumerate(files)}
    backbone, distance = load_backbone(BACKBONE, TIMESTEP), pretrained_distance("cpu")
    fixed = {
        "weights_sha256": backbone.weights_sha256,
        "calibration": {"name": calibration.name, "sha256": calibration.sha256},
        "data": {"name": VALIDATION, "crop": CROP, "sha256": [remembered_sha256(path) for path in files]},
    }
    questions = {
        (method, bits, factor): {
            "parameters": {"measurement": "tries", "backbone": BACKBONE, "timestep": TIMESTEP, "method": method}
            | {"bits": bits, "rate": factor, "images": images, **shared},
            **fixed,
        }
        for method, bits, factor in cells
    }

    def measure(cell: tuple[str, str, float]) -> pd.DataFrame:
        method, bits, factor = cell
        try:
            options = {"images": images, "rate": float(factor), **shared}
            result = METHODS.get(method).build(backbone, bits, calibration.images, **options)
            scores = [(name, *_scores(result.backbone, backbone, *pair, distance)) for name, pair in pairs.items()]
        except Diverged as error:  # a rate at which training breaks down is a result too
            print(error, flush=True)
            scores = [(name, np.nan, np.nan, np.nan, np.nan) for name in pairs]
        columns = ["image", "psnr_fp", "psnr_hr", "feature_distance", "image_loss"]
        rows = pd.DataFrame(scores, columns=columns)
        for column, value in reversed([("dataset", VALIDATION), *zip(("method", "bits", "factor"), cell, strict=True)]):
            rows.insert(0, column, value)
        return rows

    return measure_cells("study", questions, measure)


def _pair(path: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(LQ, HR) of a photograph's central crop, bicubic and realistic by turns."""
    hr = central_crop(read_image(path), CROP)
    return degrade(hr, ("bicubic", "realistic")[seed % 2], seed), hr


@torch.no_grad()
def _scores(student, teacher, lq: torch.Tensor, hr: torch.Tensor, distance: FeatureDistance) -> tuple[float, ...]:
    image, target = student.upscale(lq), teacher.upscale(lq)
    return (
        psnr_y(image, target),
        psnr_y(image, hr),
        float(distance(image, target)),
        float(perceptual_and_squared(distance)(image, target)),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run all tries and write the winners; the exit status is 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root", help="folder that holds BSDS500 (default: the environment's DATA_ROOT)")
    parser.add_argument("--images", type=positive, default=256, help="budget of one try")
    parser.add_argument("--methods", nargs="+", help="default: all trained methods; rows and rates of the others stay")
    parser.add_argument(
        "--look", choices=["first", "second"], default="first", help="second: around the first's winners"
    )
    options = parser.parse_args(arguments)
    try:
        root = paths.data_root(options.data_root)
        if root is None:
            raise QartsrError("--data-root: name the folder that holds BSDS500, or set DATA_ROOT")
        methods = checked_methods(options.methods or trained_methods())
        second = options.look == "second"
        cells = second_look(methods, read_measurement("study", "tries")) if second else first_look(methods)
        run_tries(cells, options.images, root).write("tries", by=("dataset", "method", "bits", "factor"))
        tries = read_measurement("study", "tries")
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(CHOSEN, json.dumps(choose(tries), indent=1, sort_keys=True) + "\n")
    print(f"{CHOSEN} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
