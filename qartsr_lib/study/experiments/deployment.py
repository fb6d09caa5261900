"""Notebook 07. Sizes, latencies, memory, and what a runtime's images are worth."""

from __future__ import annotations

import contextlib
import copy
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base import provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.int8 import weights_of_8_bits
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory, peak_bytes_of
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.evaluate import evaluate_pairs
from qartsr_lib.images.image import read_image, to_uint8, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study import sweep as study
from qartsr_lib.study.evaluator import Experiment
from qartsr_lib.study.measured import Measured, measure_questions
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
    backbone, full = load_backbone(*cell), (FULL_PRECISION, FULL_BITS)
    whole = tensor_bytes(backbone)
    fixed = {"dataset": dataset, "backbone": cell[0], "timestep": cell[1]}
    shared = {"measurement": "deployment", "rounds": rounds, "deploy_sha256": provenance.folder_sha256("deploy")}
    shared |= fixed | {"images": [pair.id for pair in pairs], "low_quality": list(lq.shape[-2:])}
    labels = {full: FULL_PRECISION} | {(name, bits): METHODS.get(name).label for name, bits in models}
    options = {model: training_options(*model, profile) for model in models}
    own = {full: {"runtimes": list(floats)}}
    for model, settings in options.items():
        own[model] = {"options": [list(pair) for pair in settings], "int8_weights": weights_of_8_bits()}
    questions = {
        model: {
            "parameters": {**shared, "method": labels[model], "bits": model[1], **more},
            "weights_sha256": backbone.weights_sha256,
        }
        for model, more in own.items()
    }

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
            quality = _quality(_upscalers(packed, quantized), "simulate", pairs)
            sizes = dict.fromkeys(quality, size)
        same = {**fixed, "method": labels[model], "bits": model[1], "n_images": len(pairs)}
        rows = [same | _row(name, sizes[name], whole, times) | worth for name, worth in quality.items()]
        return pd.DataFrame(rows).reindex(columns=COLUMNS)

    return measure_questions(profile.name, questions, measure)


def _float_network(name: str, backbone: str, timestep: int) -> OneStepSR:
    dtype, compiled, _ = FLOAT[name]
    model = load_backbone(backbone, timestep).to(dtype)
    # The image is enlarged in float32, whatever the network computes in.
    model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(dtype) for image in inputs))
    if compiled:
        model.compile()
    return model


def _upscalers(packed: OneStepSR, quantized: OneStepSR) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    exact = copy.deepcopy(packed).double()
    runtimes = {name: RUNTIMES.get(name)(packed).upscale for name in PACKED}
    return runtimes | {EXACT: lambda image: exact.upscale(image.double()), UNROUNDED: quantized.upscale}


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _row(name: str, size: int, whole: int, times: Mapping[str, dict]) -> dict:
    """Without latencies for what was not timed."""
    row = {"runtime": name, "file_MB": size / 1e6, "file_ratio": size / whole}
    if name not in times:
        return row
    fp32, bf16, own = (times[other]["seconds"] for other in ("fp32", "bf16", name))
    single = [other / mine for other, mine in zip(fp32, own, strict=True)]
    peak = times[name]["peak_mb"]
    values = [1000 * float(np.median(own)), against(fp32, own), against(bf16, own), min(single), max(single)]
    return row | dict(zip(LATENCY_COLUMNS, [*values, float("nan") if peak is None else peak], strict=True))


def _quality(
    upscalers: Mapping[str, Callable[[torch.Tensor], torch.Tensor]], reference: str, pairs: Sequence[Pair]
) -> dict[str, dict[str, float]]:
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
) -> dict[str, dict]:
    """Let every contestant upscale one image `rounds` times, each in a process of its own, one after the other.

    Args:
        contestants: names in FLOAT and PACKED.
        file: the packed model of those that need one.
        lq: (1, 3, h, w) in [0, 1].

    Returns:
        Contestant -> {"seconds": one per round, "peak_mb": what an image and the model take at most, or None}.

    Raises:
        QartsrError: a process ended early.
    """
    spawn, found, pipes = multiprocessing.get_context("spawn"), {}, {}
    with contextlib.ExitStack() as stack:
        for name in contestants:  # one at a time, so that none is disturbed in measuring its memory
            pipes[name], theirs = spawn.Pipe()
            given = (theirs, name, backbone, timestep, file, lq, torch.get_num_threads())
            process = spawn.Process(target=_compete, args=given)
            process.start()
            stack.callback(_end, process, pipes[name])
            theirs.close()
            found[name] = {"peak_mb": _answer(pipes[name], name), "seconds": []}
        for _ in range(rounds):
            for name, pipe in pipes.items():
                with contextlib.suppress(OSError):  # of a process that has ended; its answer tells
                    pipe.send(None)
                found[name]["seconds"].append(_answer(pipe, name))
    return found


def _end(process: BaseProcess, pipe: Connection) -> None:
    pipe.close()
    process.join(10)
    process.terminate()


def against(others: Sequence[float], seconds: Sequence[float]) -> float:
    """Median over rounds of the others' time divided by this one's: above 1 is faster."""
    return statistics.median(other / own for other, own in zip(others, seconds, strict=True))


def _compete(
    pipe: Connection, name: str, backbone: str, timestep: int, file: Path | None, lq: torch.Tensor, threads: int
) -> None:
    """Tell the peak memory in MiB (None if unknown), then at every message the seconds of one image; or an error."""
    lq = lq.clone()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            torch.set_num_threads(threads)
            _, compiled, keeps_memory = FLOAT.get(name, (None, False, True))
            if keeps_memory:
                keep_freed_memory()
            packed = name in PACKED
            model = RUNTIMES.get(name)(load_packed(file)) if packed else _float_network(name, backbone, timestep)

            def upscale(image: torch.Tensor = lq) -> torch.Tensor:
                return model.upscale(image).float()

            peak = None
            if compiled:  # for one size of image
                upscale()
            else:
                upscale(lq[..., :_SMALL, :_SMALL])  # code is loaded, and compiled where a runtime does
                peak = peak_bytes_of(upscale)
            upscale()
            pipe.send(None if peak is None else (peak + tensor_bytes(model)) / 2**20)
            while True:
                pipe.recv()
                started = time.perf_counter()
                upscale()
                pipe.send(time.perf_counter() - started)
    except (EOFError, BrokenPipeError):  # nobody asks any more
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _answer(pipe: Connection, name: str) -> float | None:
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        answer = "no message"
    if isinstance(answer, str):
        raise QartsrError(f"timing of {name} ended early: {answer}")
    return answer
