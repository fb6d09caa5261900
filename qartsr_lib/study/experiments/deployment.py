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
from dataclasses import dataclass
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
from qartsr_lib.deploy.integer_product import weights_of_8_bits
from qartsr_lib.deploy.memory import keep_freed_memory, peak_bytes_of
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.evaluate import evaluate_pairs
from qartsr_lib.images.image import read_image, to_uint8, write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study import cells as study
from qartsr_lib.study.experiment import Experiment
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
_SMALL = 16


@dataclass(frozen=True)
class Contestant:
    """One way of computing.

    Attributes:
        runtime: name in RUNTIMES for a packed model; None for the float network.
        dtype: of a float network.
        compiled: whether a float network goes through torch.compile.
        keeps_memory: whether its process keeps freed memory (deploy.memory).
    """

    runtime: str | None = None
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    keeps_memory: bool = True

    def model(self, backbone: str, timestep: int, file: Path | None) -> OneStepSR:
        """Its network: the backbone's in floating point, or the one in a packed file."""
        if self.runtime is not None:
            return RUNTIMES.get(self.runtime)(load_packed(file))
        model = load_backbone(backbone, timestep).to(self.dtype)
        # The image is enlarged in float32, whatever the network computes in.
        model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(self.dtype) for image in inputs))
        if self.compiled:
            model.compile()
        return model


FLOAT = {
    "fp32": Contestant(keeps_memory=False),
    "fp32, memory kept": Contestant(),
    "fp32, compiled": Contestant(compiled=True),
    "bf16": Contestant(dtype=torch.bfloat16),
}
PACKED = {"simulate": Contestant("simulate"), "int8": Contestant("int8")}


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
    shared = {
        "measurement": "deployment",
        "backbone": cell[0],
        "timestep": cell[1],
        "dataset": dataset,
        "images": [pair.id for pair in pairs],
        "low_quality": list(lq.shape[-2:]),
        "rounds": rounds,
        "deploy_sha256": provenance.folder_sha256("deploy"),
    }
    labels = {full: FULL_PRECISION} | {(name, bits): METHODS.get(name).label for name, bits in models}
    options = {(method, bits): training_options(method, bits, profile) for method, bits in models}
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
            rows = _float_rows(backbone, floats, pairs, lq, rounds)
        else:
            experiment = Experiment(*cell, *model, dataset, profile.seeds[0], options[model])
            quantized = study.build_model(experiment, profile, data_root=data_root)
            rows = _packed_rows(backbone, quantized, pairs, lq, rounds)
        fixed = {"dataset": dataset, "backbone": cell[0], "timestep": cell[1]}
        fixed |= {"method": labels[model], "bits": model[1], "n_images": len(pairs)}
        return pd.DataFrame([fixed | row for row in rows])[COLUMNS]

    return measure_cells(profile.name, questions, measure)


def _float_rows(
    backbone: OneStepSR, names: Sequence[str], pairs: Sequence[Pair], lq: torch.Tensor, rounds: int
) -> list[dict]:
    cell, whole = (backbone.name, backbone.timestep), tensor_bytes(backbone)
    times = race(names, *cell, None, lq, rounds)
    quality = _quality({"fp32": backbone.upscale, "bf16": FLOAT["bf16"].model(*cell, None).upscale}, "fp32", pairs)
    # Compiled or not, fp32 is the same network.
    return [
        _row(name, whole * FLOAT[name].dtype.itemsize // 4, whole, times, quality["bf16" if name == "bf16" else "fp32"])
        for name in names
    ]


def _packed_rows(
    backbone: OneStepSR, quantized: OneStepSR, pairs: Sequence[Pair], lq: torch.Tensor, rounds: int
) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        packed = save_packed(quantized, file)
        size = file.stat().st_size
        times = race(["fp32", "bf16", *PACKED], backbone.name, backbone.timestep, file, lq, rounds)
    upscalers = {name: RUNTIMES.get(contestant.runtime)(packed).upscale for name, contestant in PACKED.items()}
    exact = copy.deepcopy(packed).double()
    upscalers |= {EXACT: lambda image: exact.upscale(image.double()), UNROUNDED: quantized.upscale}
    quality = _quality(upscalers, "simulate", pairs)
    return [_row(name, size, tensor_bytes(backbone), times, quality[name]) for name in upscalers]


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _row(name: str, size: int, whole: int, times: Mapping[str, dict], quality: Mapping[str, float]) -> dict:
    """Without latencies for what was not timed."""
    row = {"runtime": name, "file_MB": size / 1e6, "file_ratio": size / whole, **quality}
    if name not in times:
        return row | dict.fromkeys(LATENCY_COLUMNS, float("nan"))
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
        for pair in pairs:
            lq = read_image(pair.lq)
            for number, (name, upscale) in enumerate(upscalers.items()):
                written[name].append(write_png(Path(folder) / str(number) / f"{pair.id}.png", upscale(lq).float()))
        for name, files in written.items():
            scores = evaluate_pairs([(file, pair.hr) for file, pair in zip(files, pairs, strict=True)], ["PSNR"])
            apart = [np.abs(_levels(a) - _levels(b)) for a, b in zip(files, written[reference], strict=True)]
            found[name] = {
                "max_grey_diff": float(max(difference.max() for difference in apart)),
                "mean_grey_diff": float(np.mean([difference.mean() for difference in apart])),
                "psnr_y": float(scores["value"].mean()),
            }
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
    contestant, lq = (FLOAT | PACKED)[name], lq.clone()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            torch.set_num_threads(threads)
            if contestant.keeps_memory:
                keep_freed_memory()
            model = contestant.model(backbone, timestep, file)

            def upscale(image: torch.Tensor = lq) -> torch.Tensor:
                return model.upscale(image).float()

            peak = None
            if contestant.compiled:  # for one size of image
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
