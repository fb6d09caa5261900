"""The measurements of notebook 07: sizes, latencies, memory, and what a runtime's images are worth."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base import provenance
from qartsr_lib.deploy.int8 import weights_of_8_bits
from qartsr_lib.deploy.packed_file import save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.evaluate import evaluate_pairs
from qartsr_lib.images.image import read_image, to_uint8, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.study import cells as study
from qartsr_lib.study.experiment import Experiment
from qartsr_lib.study.experiments.contestants import FLOAT, PACKED, Upscaler, tensor_bytes
from qartsr_lib.study.experiments.finetuning_grids import training_options
from qartsr_lib.study.experiments.race import against, race
from qartsr_lib.study.measured import Measured, measure_cells
from qartsr_lib.study.profiles import Profile

FULL_PRECISION, FULL_BITS = "FP", "W32A32"
#: Rows without a latency: the simulation in double precision, and the model before its numbers were rounded.
EXACT, UNROUNDED = "simulate, float64", "before export"
LATENCY_COLUMNS = (
    *("latency_ms", "latency_ratio_vs_fp32", "latency_ratio_vs_bf16"),
    *("ratio_lowest", "ratio_highest", "peak_MB"),
)
COLUMNS = [
    *("dataset", "backbone", "timestep", "method", "bits", "runtime", "file_MB", "file_ratio"),
    *LATENCY_COLUMNS,
    *("max_grey_diff", "mean_grey_diff", "psnr_y", "n_images"),
]


def measure_deployment(
    profile: Profile,
    cell: tuple[str, int],
    models: Sequence[tuple[str, str]],
    dataset: str,
    pairs: Sequence[Pair],
    lq: torch.Tensor,
    rounds: int,
    data_root: Path | None = None,
    floats: Sequence[str] = tuple(FLOAT),
) -> Measured:
    """Rows of COLUMNS: every way of computing, of full precision and of every quantized model.

    Ratios are another's time over this one's in the same round (median, lowest, highest against fp32):
    above 1 is faster. Grey differences are between 8-bit images: to the simulation, in full precision to fp32.

    Args:
        cell: (backbone, T).
        models: (name in METHODS, bits).
        dataset, pairs: on which images are compared and PSNR is taken.
        lq: (1, 3, h, w), the photograph that is timed.
        rounds: of timing.
        floats: names in FLOAT to time, "fp32" and "bf16" among them.
    """
    backbone = load_backbone(*cell)
    asked = {
        "measurement": "deployment",
        "backbone": cell[0],
        "timestep": cell[1],
        "dataset": dataset,
        "images": [pair.id for pair in pairs],
        "low_quality": list(lq.shape[-2:]),
        "rounds": rounds,
        "deploy_sha256": provenance.folder_sha256("deploy"),
    }
    options = {(method, bits): training_options(method, bits, profile) for method, bits in models}
    full = {"method": FULL_PRECISION, "bits": FULL_BITS, "runtimes": list(floats)}
    questions = {(FULL_PRECISION, FULL_BITS): full}
    questions |= {
        (method, bits): {
            "method": METHODS.get(method).label,
            "bits": bits,
            "options": [list(pair) for pair in settings],
            "int8_weights": weights_of_8_bits(),
        }
        for (method, bits), settings in options.items()
    }
    shared = {"weights_sha256": backbone.weights_sha256}
    questions = {key: {"parameters": asked | question, **shared} for key, question in questions.items()}

    def measure(model: tuple[str, str]) -> pd.DataFrame:
        method, bits = model
        if method == FULL_PRECISION:
            rows = _float_rows(backbone, floats, pairs, lq, rounds)
        else:
            experiment = Experiment(*cell, method, bits, dataset, profile.seeds[0], options[method, bits])
            quantized = study.build_model(experiment, profile, data_root=data_root)
            rows = _packed_rows(backbone, quantized, pairs, lq, rounds)
            method = METHODS.get(method).label
        fixed = {"dataset": dataset, "backbone": cell[0], "timestep": cell[1], "method": method, "bits": bits}
        return pd.DataFrame([fixed | row | {"n_images": len(pairs)} for row in rows])[COLUMNS]

    return measure_cells(profile.name, questions, measure)


def _float_rows(
    backbone: OneStepSR, names: Sequence[str], pairs: Sequence[Pair], lq: torch.Tensor, rounds: int
) -> list[dict]:
    cell = (backbone.name, backbone.timestep)
    times = race(names, *cell, None, lq, rounds)
    half = FLOAT["bf16"]
    images = {"fp32": backbone.upscale, "bf16": half.upscaler(half.model(*cell, None))}
    quality = _quality(images, "fp32", pairs)
    whole = tensor_bytes(backbone)
    rows = []
    for name in names:
        size = whole * FLOAT[name].dtype.itemsize // 4
        same = quality["bf16" if name == "bf16" else "fp32"]  # compiled or not, fp32 is the same network
        rows.append({"runtime": name, **_size(size, whole), **_latency(times, name), **same})
    return rows


def _packed_rows(
    backbone: OneStepSR, quantized: OneStepSR, pairs: Sequence[Pair], lq: torch.Tensor, rounds: int
) -> list[dict]:
    whole = tensor_bytes(backbone)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        packed = save_packed(quantized, file)
        size = file.stat().st_size
        times = race(["fp32", "bf16", *PACKED], backbone.name, backbone.timestep, file, lq, rounds)
    images = {name: RUNTIMES.get(contestant.runtime)(packed).upscale for name, contestant in PACKED.items()}
    exact = copy.deepcopy(packed).double()
    images[EXACT] = lambda image: exact.upscale(image.double()).float()
    images[UNROUNDED] = quantized.upscale
    quality = _quality(images, "simulate", pairs)
    return [
        {"runtime": name, **_size(size, whole), **_latency(times, name), **quality[name]}
        for name in (*PACKED, EXACT, UNROUNDED)
    ]


def _size(size: int, whole: int) -> dict[str, float]:
    return {"file_MB": size / 1e6, "file_ratio": size / whole}


def _latency(times: dict[str, dict], name: str) -> dict[str, float]:
    """Nothing for a row that was not timed."""
    if name not in times:
        return dict.fromkeys(LATENCY_COLUMNS, float("nan"))
    seconds = {other: times[other]["seconds"] for other in ("fp32", "bf16", name)}
    single = [against([fp32], [own]) for fp32, own in zip(seconds["fp32"], seconds[name], strict=True)]
    peak = times[name]["peak_mb"]
    ratios = [against(seconds[other], seconds[name]) for other in ("fp32", "bf16")]
    values = [1000 * float(np.median(seconds[name])), *ratios, min(single), max(single)]
    return dict(zip(LATENCY_COLUMNS, [*values, float("nan") if peak is None else peak], strict=True))


def _quality(upscalers: dict[str, Upscaler], reference: str, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Per name: mean PSNR-Y of its saved images, and their largest and mean grey difference to the reference's."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        written: dict[str, list[Path]] = {name: [] for name in upscalers}
        for pair in pairs:
            lq = read_image(pair.lq)
            for number, (name, upscale) in enumerate(upscalers.items()):
                written[name].append(write_png(Path(folder) / str(number) / f"{pair.id}.png", upscale(lq)))
        for name, paths in written.items():
            scores = evaluate_pairs([(path, pair.hr) for path, pair in zip(paths, pairs, strict=True)], ["PSNR"])
            apart = [_grey(path, other) for path, other in zip(paths, written[reference], strict=True)]
            found[name] = {
                "max_grey_diff": float(max(difference.max() for difference in apart)),
                "mean_grey_diff": float(np.mean([difference.mean() for difference in apart])),
                "psnr_y": float(scores["value"].mean()),
            }
    return found


def _grey(path: Path, other: Path) -> np.ndarray:
    return np.abs(to_uint8(read_image(path)).astype(int) - to_uint8(read_image(other)))
