"""Notebook 07. Sizes, latencies, memory, and what a runtime's images are worth."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base import provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.lean_imports import lean_process
from qartsr_lib.deploy.int8 import weights_of_8_bits
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory, peak_bytes_of
from qartsr_lib.images.datasets.base import Pair, fingerprint
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.images.evaluate import evaluate_pairs
from qartsr_lib.images.image import read_image, to_uint8, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import model_facts
from qartsr_lib.study import sweep as study
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import Profile

#: Rows without a latency: the simulation in double precision, and the model before its numbers were rounded.
EXACT, UNROUNDED = "simulate, float64", "before export"
LATENCY_COLUMNS = ["latency_ms", "latency_ratio_vs_fp32", "latency_ratio_vs_bf16", "ratio_lowest", "ratio_highest"]
LATENCY_COLUMNS += ["peak_MB"]
COLUMNS = ["dataset", "backbone", "timestep", "method", "bits", "runtime", "file_MB", "file_ratio", *LATENCY_COLUMNS]
COLUMNS += ["max_grey_diff", "mean_grey_diff", "psnr_y", "n_images"]
_SMALL = 16
#: Float network -> its dtype, whether it goes through torch.compile, whether its process keeps freed memory.
FLOAT = {
    "fp32": (torch.float32, False, False),
    "fp32, memory kept": (torch.float32, False, True),
    "fp32, compiled": (torch.float32, True, True),
    "bf16": (torch.bfloat16, False, True),
}
#: Names in RUNTIMES of packed models, whose processes keep freed memory.
PACKED = ("simulate", "int8")
Upscale = Callable[[torch.Tensor], torch.Tensor]


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

    Grey differences are between 8-bit images: to the simulation, in full precision to fp32.

    Args:
        cell: (backbone, T).
        models: (name in METHODS, bits).
        dataset, pairs: on which images are compared and PSNR is taken.
        lq: (1, 3, h, w), the photograph that is timed.
        floats: names in FLOAT to time, "fp32" and "bf16" among them.

    Raises:
        QartsrError: `floats` names another, or lacks one of these two, which all is compared with.
    """
    if set(floats) - set(FLOAT) or not {"fp32", "bf16"} <= set(floats):
        known = ", ".join(map(repr, FLOAT))
        raise QartsrError(f"timed_floats is {list(floats)}: choose from {known}; 'fp32' and 'bf16' have to be there")
    backbone, full = load_backbone(*cell), FULL_PRECISION
    whole = tensor_bytes(backbone)
    fixed = {"dataset": dataset, "backbone": cell[0], "timestep": cell[1]}
    shared = {"measurement": "deployment", "rounds": rounds, "deploy_sha256": provenance.folder_sha256("deploy")}
    shared |= fixed | {"images": [pair.id for pair in pairs], "low_quality": list(lq.shape[-2:])}
    options = {model: training_options(*model, profile) for model in models}
    data = {"name": dataset, "images": len(pairs), "sha256": fingerprint(pairs)}
    calibration = calibration_list(profile, data_root)
    seen = {"calibration": {"name": calibration.name, "sha256": calibration.sha256}}
    questions = {}
    for model in (full, *models):
        named = {"method": METHODS.get(model[0]).label, "bits": model[1]}
        named |= model_facts(model[0], cell[0], options.get(model, ()))
        own = {"runtimes": list(floats)}
        if model != full:
            own = {"options": [list(pair) for pair in options[model]], "int8_weights": weights_of_8_bits()}
            own |= {"seed": profile.seeds[0]}
        question = {"parameters": shared | named | own, "weights_sha256": backbone.weights_sha256, "data": data}
        questions[model] = question if model == full else question | seen

    def measure(model: tuple[str, str]) -> pd.DataFrame:
        if model == full:
            times = race(floats, *cell, None, lq, rounds)
            upscalers = {"fp32": backbone.upscale, "bf16": _float_network("bf16", *cell).upscale}
            quality = _quality(upscalers, "fp32", pairs)
            # Compiled or not, fp32 is the same network.
            quality = {name: quality["bf16" if name == "bf16" else "fp32"] for name in floats}
            sizes = {name: whole * FLOAT[name][0].itemsize // 4 for name in floats}
        else:
            experiment = Experiment(*cell, *model, dataset, profile.seeds[0], options[model])
            quantized = study.build_model(experiment, profile, data_root=data_root)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.safetensors"
                packed = save_packed(quantized, file)
                size = file.stat().st_size
                times = race(["fp32", "bf16", *PACKED], *cell, file, lq, rounds)
            exact = copy.deepcopy(packed).double()
            upscalers = {name: RUNTIMES.get(name)(packed).upscale for name in PACKED}
            upscalers |= {EXACT: lambda image: exact.upscale(image.double()), UNROUNDED: quantized.upscale}
            quality = _quality(upscalers, "simulate", pairs)
            sizes = dict.fromkeys(quality, size)
        rows = pd.DataFrame.from_dict(quality, orient="index").join(latencies(*times))
        rows["file_MB"], rows["file_ratio"] = rows.index.map(sizes) / 1e6, rows.index.map(sizes) / whole
        same = fixed | {"method": METHODS.get(model[0]).label, "bits": model[1], "n_images": len(pairs)}
        return rows.rename_axis("runtime").reset_index().assign(**same).reindex(columns=COLUMNS)

    return measure_questions(profile.name, questions, measure)


def _float_network(name: str, backbone: str, timestep: int) -> OneStepSR:
    dtype, compiled, _ = FLOAT[name]
    model = load_backbone(backbone, timestep).to(dtype)
    # The image is enlarged in float32, whatever the network computes in.
    model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(dtype) for image in inputs))
    if compiled:
        model.compile()
    return model


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def latencies(seconds: pd.DataFrame, peaks: pd.Series) -> pd.DataFrame:
    """One row of LATENCY_COLUMNS per contestant of a `race`.

    Ratios are another's time over this one's in the same round (median, lowest, highest to fp32): above 1 is faster.
    """
    fp32, bf16 = (seconds.rdiv(seconds[other], axis=0) for other in ("fp32", "bf16"))
    columns = 1000 * seconds.median(), fp32.median(), bf16.median(), fp32.min(), fp32.max(), peaks
    return pd.concat(columns, axis=1, keys=LATENCY_COLUMNS)


def _quality(upscalers: Mapping[str, Upscale], reference: str, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Per name: mean PSNR-Y of its saved images, and their largest and mean grey difference to the reference's."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        written: dict[str, list[Path]] = {name: [] for name in upscalers}
        for (number, (name, upscale)), pair in product(enumerate(upscalers.items()), pairs):
            file = Path(folder) / str(number) / f"{pair.id}.png"
            written[name].append(write_png(file, upscale(read_image(pair.lq)).float()))
        for name, files in written.items():
            scores = evaluate_pairs([(file, pair.hr) for file, pair in zip(files, pairs, strict=True)], ["PSNR"])
            apart = [np.abs(_levels(a) - _levels(b)) for a, b in zip(files, written[reference], strict=True)]
            largest, means = max(one.max() for one in apart), [one.mean() for one in apart]
            found[name] = {"max_grey_diff": float(largest), "mean_grey_diff": float(np.mean(means))}
            found[name]["psnr_y"] = float(scores["value"].mean())
    return found


def _levels(file: Path) -> np.ndarray:
    return to_uint8(read_image(file)).astype(int)


def race(
    contestants: Sequence[str], backbone: str, timestep: int, file: Path | None, lq: torch.Tensor, rounds: int
) -> tuple[pd.DataFrame, pd.Series]:
    """Let every contestant upscale one image `rounds` times, each in a process of its own, one after the other.

    Args:
        contestants: names in FLOAT and PACKED.
        file: the packed model of those that need one.
        lq: (1, 3, h, w) in [0, 1].

    Returns:
        Seconds, a row per round and a column per contestant; the most MiB that an image and the model take, or NaN.
    """
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(_process(name, spawn)) for name in contestants}

        def ask(name: str, *call: object) -> float:
            try:
                return processes[name].submit(*call).result()
            except Exception as error:
                raise QartsrError(f"timing of {name} ended early: {type(error).__name__}: {error}") from error

        # one at a time, so that none is disturbed in measuring its memory
        peaks = {name: ask(name, _enter, name, backbone, timestep, file, lq, threads) for name in contestants}
        seconds = [{name: ask(name, _seconds) for name in contestants} for _ in range(rounds)]
    return pd.DataFrame(seconds), pd.Series(peaks)


def _process(name: str, spawn: BaseContext) -> ProcessPoolExecutor:
    """Of its own, and started in half of the time, but for a network whose marks for torch.compile must count."""
    compiled = name in FLOAT and FLOAT[name][1]
    return ProcessPoolExecutor(1, spawn, initializer=None if compiled else lean_process)


_contestant: list[Callable[[], torch.Tensor]] = []  # of this process: upscales the image


def _enter(name: str, backbone: str, timestep: int, file: Path | None, lq: torch.Tensor, threads: int) -> float:
    """Make this process a contestant; returns its peak memory in MiB, NaN if unknown."""
    sys.stderr = io.StringIO()  # for good: no progress, no warnings
    torch.set_num_threads(threads)
    image, (_, compiled, keeps_memory) = lq.clone(), FLOAT.get(name, (None, False, True))
    if keeps_memory:
        keep_freed_memory()
    model = RUNTIMES.get(name)(load_packed(file)) if name in PACKED else _float_network(name, backbone, timestep)

    def upscale(lq: torch.Tensor = image) -> torch.Tensor:
        return model.upscale(lq).float()

    peak = None
    if compiled:  # for one size of image
        upscale()
    else:
        upscale(image[..., :_SMALL, :_SMALL])  # code is loaded, and compiled where a runtime does
        peak = peak_bytes_of(upscale)
    upscale()
    _contestant.append(upscale)
    return math.nan if peak is None else (peak + tensor_bytes(model)) / 2**20


def _seconds() -> float:
    started = time.perf_counter()
    _contestant[0]()
    return time.perf_counter() - started
