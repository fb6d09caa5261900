"""`python -m tests.benchmarks.peers`: one photograph through this project's runtimes and other engines, by turns.

Every contestant has a process of its own, and they take turns, so that a ratio is of one round. Weights are those of
the study; MaxMin, QArtSR (4 training images) and Groupwise (none) are quantized here. The float network reaches the
engines as an ONNX file for this size of image, ncnn by pnnx; exports are those of `qartsr export`. Engines that are not
installed are left out, and the record says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base import paths, provenance
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import run_command
from qartsr_lib.deploy.export import FORMATS, save_exported
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory, peak_bytes_of
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.study.profiles import get_profile

MODEL = ("embedded-scaled", 1)
METHODS_HERE, BITS = ("maxmin", "qartsr", "groupwise-untrained"), "W4A4"
EXPORTS = ("onnx", "openvino")
REFERENCES = ("fp32", "bf16", "openvino, its default")
Call = Callable[[], object]


def own_float(folder: Path, lq: torch.Tensor, dtype: torch.dtype, compiled: bool = False) -> Call:
    """The float network by PyTorch, freed memory kept."""
    model = load_backbone(*MODEL).to(dtype)
    model.register_forward_pre_hook(lambda _, inputs: tuple(image.to(dtype) for image in inputs))
    if compiled:
        model.compile()
    return lambda: model.upscale(lq)


def own_packed(folder: Path, lq: torch.Tensor, method: str, runtime: str = "int8") -> Call:
    """A packed model as `qartsr upscale --runtime` runs it."""
    model = RUNTIMES.get(runtime)(load_packed(folder / f"{method}.safetensors"))
    return lambda: model.upscale(lq)


def exported(folder: Path, lq: torch.Tensor, method: str, kind: str) -> Call:
    """A packed model as `qartsr export --format` writes it."""
    path = folder / f"{method}{FORMATS[kind].ending}"
    if not path.exists():
        save_exported(load_packed(folder / f"{method}.safetensors"), path, kind)
    run, prepare = FORMATS[kind].run(path), load_backbone(*MODEL).prepare
    return lambda: run(prepare(lq))


def onnx_runtime(folder: Path, lq: torch.Tensor, quantized: bool = False) -> Call:
    """The float network by ONNX Runtime, or its own 8 bits (QDQ) after a look at the image that is timed."""
    import onnxruntime
    from onnxruntime import quantization

    prepare, path, options = load_backbone(*MODEL).prepare, folder / "float.onnx", onnxruntime.SessionOptions()
    if quantized:
        feed = [{"upscaled": prepare(lq).contiguous().numpy()}]
        reader = type("OneImage", (quantization.CalibrationDataReader,), {"get_next": lambda _: feed and feed.pop()})()
        ready, path = folder / "ready.onnx", folder / "qdq.onnx"
        quantization.quant_pre_process(_with_own_names(folder / "float.onnx"), ready)
        quantization.quantize_static(ready, path, reader)
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"upscaled": prepare(lq).contiguous().numpy()})


def _with_own_names(path: Path):
    """The ONNX file with other names of weights: findings/onnxruntime_quantizes_torch_names_twice.sh."""
    import onnx

    model = onnx.load(path)
    names = {weight.name: f"{weight.name}_" for weight in model.graph.initializer}
    for weight in model.graph.initializer:
        weight.name = names[weight.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model


def ncnn(folder: Path, lq: torch.Tensor) -> Call:
    """The float network by ncnn, in float32."""
    import ncnn
    import numpy as np
    import pnnx

    model, net = load_backbone(*MODEL), ncnn.Net()
    pnnx.export(model, str(folder / "float.pt"), (model.prepare(lq).contiguous(),), fp16=False)
    net.opt.num_threads, net.opt.use_fp16_packed, net.opt.use_fp16_storage = torch.get_num_threads(), False, False
    net.opt.use_fp16_arithmetic, net.opt.use_bf16_storage = False, False
    net.load_param(str(folder / "float.ncnn.param")), net.load_model(str(folder / "float.ncnn.bin"))

    def run() -> object:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(model.prepare(lq)[0].contiguous().numpy()).clone())
            return np.array(extractor.extract("out0")[1])

    return run


def openvino(folder: Path, lq: torch.Tensor, precision: str | None = None, quantized: bool = False) -> Call:
    """The float network by OpenVINO, or what NNCF quantizes of it after a look at the image that is timed."""
    import openvino as ov

    core, prepare = ov.Core(), load_backbone(*MODEL).prepare
    graph = core.read_model(folder / "float.onnx")
    if quantized:
        import nncf

        graph = nncf.quantize(graph, nncf.Dataset([prepare(lq).contiguous().numpy()]), subset_size=1)
    hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(graph, "CPU", hints | ({"INFERENCE_PRECISION_HINT": precision} if precision else {}))
    return lambda: compiled([prepare(lq).contiguous().numpy()])


#: Name -> (packages, function, its further arguments).
CONTESTANTS: dict[str, tuple[tuple[str, ...], Callable[..., Call], tuple]] = {
    "fp32": ((), own_float, (torch.float32,)),
    "fp32, compiled": ((), own_float, (torch.float32, True)),
    "bf16": ((), own_float, (torch.bfloat16,)),
    **{f"int8, {method} {BITS}": ((), own_packed, (method,)) for method in METHODS_HERE},
    f"simulate, qartsr {BITS}": ((), own_packed, ("qartsr", "simulate")),
    **{f"{kind}, export of qartsr {BITS}": (FORMATS[kind].packages, exported, ("qartsr", kind)) for kind in EXPORTS},
    "ncnn, float32": (("ncnn", "pnnx"), ncnn, ()),
    "onnxruntime, float32": (("onnxscript", "onnxruntime"), onnx_runtime, ()),
    "onnxruntime, QDQ int8": (("onnxscript", "onnxruntime"), onnx_runtime, (True,)),
    "openvino, float32": (("onnxscript", "openvino"), openvino, ("f32",)),
    "openvino, its default": (("onnxscript", "openvino"), openvino, ()),
    "openvino, NNCF int8": (("onnxscript", "openvino", "nncf"), openvino, (None, True)),
}


def prepared(folder: Path, lq: torch.Tensor, exported: bool) -> None:
    """Write the packed models, and the float network as ONNX for the size of `lq` enlarged."""
    profile, backbone = get_profile("tiny", train_images=4), load_backbone(*MODEL)
    for method in METHODS_HERE:
        settings = dict(training_options(method, BITS, profile))
        built = METHODS.get(method).build(backbone, BITS, calibration_list(profile).images, **settings)
        save_packed(built.backbone, folder / f"{method}.safetensors")
    if exported:
        how = {"input_names": ["upscaled"], "output_names": ["image"], "dynamo": True, "verbose": False}
        image = backbone.prepare(lq).contiguous()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(backbone, (image,), folder / "float.onnx", **how)


_entered: list[Call] = []  # of this process


def enter(name: str, folder: Path, lq: torch.Tensor, threads: int) -> int | None:
    """Make this process a contestant, and run it three times; how far the first raised its memory, in bytes."""
    sys.stderr = io.StringIO()
    torch.set_num_threads(threads)
    keep_freed_memory()
    _, make, more = CONTESTANTS[name]
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        _entered.append(make(folder, lq.clone(), *more))
        peak = peak_bytes_of(_entered[0])
    seconds(), seconds()
    return peak


def seconds() -> float:
    """Time of one image."""
    started = time.perf_counter()
    with torch.no_grad():
        _entered[0]()
    return time.perf_counter() - started


def race(names: Sequence[str], folder: Path, lq: torch.Tensor, rounds: int, threads: int):
    """Seconds of every contestant, one number a round; peak memory; those that could not enter, with the reason."""
    spawn, peaks, failed = multiprocessing.get_context("spawn"), {}, {}
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in names}
        for name in names:
            try:
                peaks[name] = processes[name].submit(enter, name, folder, lq, threads).result()
            except Exception as error:  # of another engine: the rest goes on
                failed[name] = f"{type(error).__name__}: {error}"[:300]
        turns = [{name: processes[name].submit(seconds).result() for name in peaks} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in peaks}, peaks, failed


def summary(found: Mapping[str, Sequence[float]]) -> dict[str, dict[str, object]]:
    """Milliseconds, and how many times as fast as each of REFERENCES in the same round: median, lowest, highest."""

    def spread(values: Sequence[float], digits: int) -> list[float]:
        return [round(of(values), digits) for of in (statistics.median, min, max)]

    rows = {}
    for name, own in found.items():
        rows[name] = {"ms": spread([1000 * one for one in own], 1)}
        for reference in (other for other in REFERENCES if other in found):
            quotients = [other / one for other, one in zip(found[reference], own, strict=True)]
            rows[name][f"x {reference}"] = spread(quotients, 2)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--rounds", type=int, default=9, help="default: 9")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: PyTorch's choice here")
    add("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME", help="default: all")
    add("--models", type=Path, metavar="FOLDER", help="keep the models that are made here, and use them if they exist")
    add("--record", type=Path, metavar="FILE.json", help="the record (default: results/peers.json)")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    needed = {name: CONTESTANTS[name][0] for name in options.only}
    missing = {
        name: f"{package} is not installed"
        for name, packages in needed.items()
        for package in packages
        if importlib.util.find_spec(package) is None
    }
    names = [name for name in options.only if name not in missing]
    lq = calibration_list(get_profile("tiny", n_calibration=1, calibration_size=128)).images[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{METHODS_HERE[-1]}.safetensors").exists():
            prepared(folder, lq, any(needed[name] for name in names))
        found, peaks, failed = race(names, folder, lq, options.rounds, options.threads)
    packages = sorted({package for packages in needed.values() for package in packages if package not in missing})
    record = {
        "what": "one photograph, batch 1; [median, lowest, highest] over rounds in which contestants take turns",
        "setting": {"backbone": MODEL[0], "timestep": MODEL[1], "lq": list(lq.shape[-2:]), "threads": options.threads},
        "rows": summary(found),
        "peak bytes of the first image": peaks,
        "left out": missing | failed,
        "versions": {name: version(name) for name in packages if importlib.util.find_spec(name)},
        "environment": provenance.environment("cpu"),
        "git": provenance.git_state(),
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    write_text(options.record or paths.results_dir("peers").with_suffix(".json"), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
