"""The noise floor: how far a number moves when nothing but rounding differs.

Float32 sums come out in another order on another machine or with another number of threads, and
low-bit networks amplify that. So the same cells are made several times, each as another machine might
round (`VARIANTS`): on one thread, on two, and with every weight moved by at most one unit in the last
place. Ranges, training and images are made anew each time.

Recorded is the largest range (highest minus lowest) of a number over the variants, over all cells of
one bit width. `Floor.tolerance` is `FACTOR` times it: four draws of a normal distribution have a mean
range of 2.06 standard deviations, and two draws are 2 x 2.06 / sqrt(2) = 2.9 standard deviations of
their difference apart in 0.4 % of all cases.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib import metrics, paths, provenance, theorem
from qartsr_lib.atomic import write_text
from qartsr_lib.backbones import OneStepSR, load_backbone
from qartsr_lib.datasets import DATASETS
from qartsr_lib.datasets.base import Pair
from qartsr_lib.datasets.calibration import calibration_list
from qartsr_lib.errors import QartsrError
from qartsr_lib.finetuning_grids import training_options
from qartsr_lib.images import read_image, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.profiles import ALL_METRICS, Profile, get_profile
from qartsr_lib.progress import progress
from qartsr_lib.results import cell_text
from qartsr_lib.study import FULL_PRECISION

FACTOR = 2.0
#: Two numbers that are equal to the seventh digit, which is where tables end, are equal.
DIGITS = 1e-6
STATIC, TRAINED = "static", "trained"
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
    cases = [Case(*cell, method, width) for cell in profile.finetune_cells for method, width in widths]
    return cases + [Case(*profile.finetune_cells[-1], trained, width) for width in bits]


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
    work = [(case, variant) for case in cases for variant in variants]
    rows = []
    for case, variant in progress(work, "noise floor"):
        for image, values in _measured(case, variant, profile, pairs, names):
            rows += [(case, variant, image, name, value) for name, value in values.items()]
    return _floors(pd.DataFrame(rows, columns=["case", "variant", "image", "quantity", "value"]))


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
    case: Case, variant: Variant, profile: Profile, pairs: Sequence[Pair], names: Sequence[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """(image, quantity -> value) of one model made and used in one way of rounding."""
    with _threads(variant.threads):
        full = nudged(load_backbone(case.backbone, case.timestep), variant.nudge)
        calibration = [] if case.method == "fp" else calibration_list(profile).images
        options = dict(training_options(case.method, case.bits, profile))
        torch.manual_seed(0)
        model = METHODS.get(case.method).build(full, case.bits, calibration, seed=0, **options).backbone
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
    return theorem.measure_unet_error(full, quantized, reference) | theorem.measure_encoder_error(
        full, quantized, upscaled, reference
    )


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


def floor_file() -> Path:
    """results/noise_floor.csv."""
    return paths.results_dir("noise_floor").with_suffix(".csv")


def measure_and_write() -> Path:
    """Measure the floors of `floor_profile` and write results/noise_floor.csv, beside it .json: how it was made."""
    profile = floor_profile()
    cases = default_cases(profile)
    frame = measure(cases, profile)
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
    return get_profile("tiny", max_images=3, n_calibration=12, metrics=(*ALL_METRICS, "VAE-FD"))


@dataclass(frozen=True)
class Floor:
    """Measured floors, and the tolerance that follows from them.

    Attributes:
        rows: (kind, bits, quantity) -> {"table", "image", "relative"}.
    """

    rows: Mapping[tuple[str, str, str], Mapping[str, float]]

    @classmethod
    def read(cls, path: Path) -> Floor:
        """From a file that `measure` filled.

        Raises:
            QartsrError: absent, or another file.
        """
        try:
            frame = pd.read_csv(path)
            keys = zip(frame["kind"], frame["bits"], frame["quantity"], strict=True)
            return cls(dict(zip(keys, frame[["table", "image", "relative"]].to_dict("records"), strict=True)))
        except FileNotFoundError as error:
            raise QartsrError(f"{path}: no noise floor; python -m qartsr_lib.compare --measure-floor makes it") from error
        except (KeyError, ValueError) as error:
            raise QartsrError(f"{path}: is not a noise floor; restore it from git or measure it again") from error

    def measured(self, quantity: str) -> bool:
        """Whether the quantity has a floor of its own at any bit width."""
        return any(key[2] == quantity for key in self.rows)

    def tolerance(self, kind: str, bits: str, quantity: str, level: str, size: float) -> float:
        """Largest difference of two runs that rounding explains.

        A bit width that was not measured takes the next lower one, which is noisier, else the lowest
        there is; a trained method's full precision is static. A quantity that was not measured takes
        the largest relative floor of its bit width.

        Args:
            kind: STATIC or TRAINED.
            level: "table" (a mean over images) or "image".
            size: of the number.
        """
        widths = {key[1] for key in self.rows if key[0] == kind}
        if not widths:
            return math.inf if kind == TRAINED else DIGITS * size
        width = _nearest(bits, widths)
        own = self.rows.get((kind, width, quantity))
        if own is not None:
            return FACTOR * own[level] + DIGITS * size
        borrowed = [row["relative"] for key, row in self.rows.items() if key[:2] == (kind, width)]
        return (FACTOR * max(value for value in borrowed if not math.isnan(value)) + DIGITS) * size


def _nearest(bits: str, widths: set[str]) -> str:
    """`bits` or the next lower of `widths`, else the lowest."""
    order = sorted(widths, key=_activation_bits, reverse=True)
    return next((width for width in order if _activation_bits(width) <= _activation_bits(bits)), order[-1])


def _activation_bits(bits: str) -> int:
    return int(bits.rpartition("A")[2])
