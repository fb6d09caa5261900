"""Measure the noise floor: make the same cells several times, each as another machine might round.

Float32 sums come out in another order on another machine or with another number of threads, and
low-bit networks amplify that. The ways of rounding (`VARIANTS`): one thread, two threads, and twice
every weight moved by at most one unit in the last place. Ranges, training and images are made anew
each time. Finished cells lie in the cache, so that an interrupted measurement continues.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib.backbones import OneStepSR, load_backbone
from qartsr_lib.base import provenance
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.files import write_text
from qartsr_lib.base.progress import progress
from qartsr_lib.images import metrics
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.images.datasets.base import Pair, fingerprint
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study.evaluator import FULL_PRECISION
from qartsr_lib.study.experiments import theorem
from qartsr_lib.study.measured import measure_questions
from qartsr_lib.study.profiles import ALL_METRICS, Profile, get_profile
from qartsr_lib.study.results import cell_text
from tests.benchmarks.noise_floor import STATIC, TRAINED, floor_file

#: Folder of the cache in which finished cells lie.
NAME = "noise_floor"
COLUMNS = ("kind", "bits", "quantity", "table", "image", "relative", "cells", "images", "variants")


@dataclass(frozen=True)
class Variant:
    """One way of rounding.

    Attributes:
        threads: of PyTorch.
        nudge: seed of the change of each weight by -1, 0 or 1 unit in the last place; None changes nothing.
    """

    threads: int
    nudge: int | None = None


VARIANTS = (Variant(1), Variant(2), Variant(1, 1), Variant(1, 2))


@dataclass(frozen=True)
class Case:
    """One model that is made in every variant; `kind` is TRAINED where the method trains."""

    backbone: str
    timestep: int
    method: str
    bits: str

    @property
    def kind(self) -> str:
        return TRAINED if METHODS.get(self.method).trains else STATIC


def default_cases(profile: Profile, trained: str = "qartsr", bits: Sequence[str] = ("W4A4", "W2A2")) -> list[Case]:
    """Full precision and MaxMin at every bit width on the profile's cells of Table 3; one trained method on the last.

    Args:
        trained: name in METHODS.
        bits: of the trained method.
    """
    widths = [FULL_PRECISION, *(("maxmin", width) for width in profile.bits)]
    cases = [Case(*cell, method, width) for cell in profile.finetune_models for method, width in widths]
    return cases + [Case(*profile.finetune_models[-1], trained, width) for width in bits]


def measure(
    cases: Sequence[Case], profile: Profile, pairs: Sequence[Pair] | None = None, variants: Sequence[Variant] = VARIANTS
) -> pd.DataFrame:
    """The floors of `cases`, one row per kind, bit width and quantity (`COLUMNS`).

    Quantities are the profile's metrics that this machine has and, of cases without training, the errors
    of `theorem`. "table" is of a mean over all images, "image" of one image, "relative" is "table" over
    the size of the number.

    Args:
        pairs: photographs; those of the data set "samples" by default, as many as the profile takes.
    """
    if len(variants) < 2:
        raise ValueError("a range needs two variants")
    pairs = DATASETS.get("samples").pairs(max_images=profile.max_images) if pairs is None else pairs
    names = [name for name, reason in metrics.available(profile.metrics).items() if reason is None]
    calibration = calibration_list(profile)
    common = {"measurement": "noise floor", "data": fingerprint(list(pairs)), "metrics": metrics.identity(names)}
    common |= {"calibration": calibration.sha256, "train_images": profile.train_images}

    def one(cell: tuple[Case, int]) -> pd.DataFrame:
        case, number = cell
        found = _measured(case, variants[number], profile, calibration.images, pairs, names)
        rows = [(image, name, value) for image, values in found for name, value in values.items()]
        return pd.DataFrame(rows, columns=["image", "quantity", "value"])

    frames = []
    for case, number in progress([(case, number) for case in cases for number in range(len(variants))], "noise floor"):
        question = common | {"case": asdict(case), "variant": asdict(variants[number]), "number": number}
        measured = measure_questions(NAME, {(case, number): question}, one)
        frames.append(measured.table.assign(case=case, variant=number))
    return _floors(pd.concat(frames, ignore_index=True))


def _floors(values: pd.DataFrame) -> pd.DataFrame:
    means = values.groupby(["case", "quantity", "variant"], sort=False)["value"].mean()
    table = means.groupby(["case", "quantity"], sort=False).agg(_range)
    size = means.groupby(["case", "quantity"], sort=False).mean().abs()
    image = values.groupby(["case", "quantity", "image"], sort=False)["value"].agg(_range)
    image = image.groupby(["case", "quantity"], sort=False).max()
    found = pd.DataFrame({"table": table, "image": image, "relative": table / size.where(size > 0)}).reset_index()
    found = found.assign(kind=[case.kind for case in found["case"]], bits=[case.bits for case in found["case"]])
    floors = found.groupby(["kind", "bits", "quantity"], sort=False)
    largest = floors[["table", "image", "relative"]].max()
    counts = {"images": values["image"].nunique(), "variants": values["variant"].nunique()}
    return largest.assign(cells=floors.size(), **counts).reset_index()[list(COLUMNS)]


def _range(values: pd.Series) -> float:
    return float(values.max() - values.min())


def _measured(
    case: Case,
    variant: Variant,
    profile: Profile,
    crops: list[torch.Tensor],
    pairs: Sequence[Pair],
    names: Sequence[str],
) -> Iterator[tuple[str, dict[str, float]]]:
    """(image, quantity -> value) of one model made and used in one way of rounding."""
    with _threads(variant.threads):
        full = nudged(load_backbone(case.backbone, case.timestep), variant.nudge)
        options = dict(training_options(case.method, case.bits, profile))
        torch.manual_seed(0)
        model = METHODS.get(case.method).build(full, case.bits, crops, seed=0, **options).backbone
        for pair in pairs:
            values = _scores(model, pair, names)
            if case.method == "maxmin":
                values |= _errors(full, model, read_image(pair.lq))
            yield pair.id, values


def _scores(model: OneStepSR, pair: Pair, names: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="qartsr-floor-") as folder:
        with torch.inference_mode():
            png = write_png(Path(folder, "sr.png"), model.upscale(read_image(pair.lq)))
        scores = metrics.score(png, pair.hr, names)
    return {name: value for name, (value, _) in scores.items() if value is not None and math.isfinite(value)}


@torch.no_grad()
def _errors(full: OneStepSR, quantized: OneStepSR, lq: torch.Tensor) -> dict[str, float]:
    upscaled = full.prepare(lq)
    reference = full.stages(upscaled)
    return theorem.measure_errors(full, quantized, upscaled, reference)


def nudged(backbone: OneStepSR, seed: int | None) -> OneStepSR:
    """A copy whose float weights are moved by -1, 0 or 1 unit in the last place at random; None: as it is."""
    if seed is None:
        return backbone
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in moved.parameters():
            step = torch.randint(-1, 2, parameter.shape, generator=generator).to(parameter)
            parameter.copy_(torch.nextafter(parameter, parameter + step))
    return moved


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_and_write(cases: Sequence[Case] | None = None) -> Path:
    """Measure the floors of `floor_profile` and write results/noise_floor.csv, beside it .json: how it was made.

    Args:
        cases: `default_cases` by default.
    """
    profile, cache = floor_profile(), RunCache.for_profile(NAME)
    cases = default_cases(profile) if cases is None else cases
    cache.begin([NAME], [NAME])
    frame = measure(cases, profile)
    cache.finish(NAME)
    made = {
        "cases": [asdict(case) for case in cases],
        "variants": [asdict(variant) for variant in VARIANTS],
        "settings": {name: getattr(profile, name) for name in ("max_images", "n_calibration", "train_images")},
        "git": provenance.git_state(),
        "environment": provenance.environment() | {"threads": None},
    }
    write_text(floor_file().with_suffix(".json"), json.dumps(made, indent=1) + "\n")
    return write_text(floor_file(), frame.map(cell_text).to_csv(index=False, lineterminator="\n"))


def floor_profile() -> Profile:
    """Profile tiny, with as few images as tell how far rounding goes."""
    return get_profile("tiny", max_images=2, n_calibration=12, metrics=(*ALL_METRICS, "VAE-FD"))
