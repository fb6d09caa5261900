"""A quantized model in the formats of other engines, written once the engine that will run it has been checked.

The graph takes the upscaled image ("upscaled", (1, 3, H, W) in [0, 1], sides divide by the network's `multiple`) and
gives the result ("image", like it). Bicubic enlargement, padding and cropping stay outside, as `OneStepSR.upscale` does
them. Quantizers of activations are plain float operations (`traced`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import flush, write_atomically
from qartsr_lib.deploy.executorch_file import make_executorch, run_executorch
from qartsr_lib.deploy.export_check import Distance, Run, check_layers, check_picture, picture_of
from qartsr_lib.deploy.layer import InferenceLayer, inference_form
from qartsr_lib.deploy.onnx_file import make_onnx, run_onnx, run_openvino, save_openvino


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        ending: of the file's name.
        packages: that it needs, all in pyproject.toml's optional dependencies `extra`.
        make: of a network with InferenceLayers, (what runs a graph that tells every layer's input and output as
            "<name>:in" and "<name>:out" beside "image", the graph to write).
        run: its engine, from the file.
        limit: of one layer's error, see `check_layers`.
        save: writes the graph; as it is by default.
    """

    ending: str
    extra: str
    packages: tuple[str, ...]
    make: Callable[[OneStepSR], tuple[Run, bytes]]
    run: Callable[[Path], Run]
    limit: float
    save: Callable[[bytes, Path], object] = lambda graph, path: path.write_bytes(graph)


#: OpenVINO 2026.4 refuses UINT2 in ONNX files. ONNX Runtime differs in the order of sums and in what is rounded to
#: bfloat16 then; OpenVINO fuses multiply and add, so that now and then a value between two codes gets the other one.
FORMATS = {
    "onnx": Format(
        ".onnx",
        "export",
        ("onnx", "onnxscript", "onnxruntime"),
        partial(make_onnx, run=run_onnx, widths=(2, 4, 8)),
        run_onnx,
        1e-3,
    ),
    "openvino": Format(
        ".xml",
        "export",
        ("onnx", "onnxscript", "openvino"),
        partial(make_onnx, run=run_openvino, widths=(4, 8)),
        run_openvino,
        5e-3,
        save_openvino,
    ),
    "executorch": Format(".pte", "executorch", ("executorch",), make_executorch, run_executorch, 1e-3),
}


def check_export(name: str, path: Path) -> Format:
    """The format of that name; QartsrError where a package is missing or `path` has another ending."""
    kind = FORMATS[name]
    missing = [package for package in kind.packages if importlib.util.find_spec(package) is None]
    if missing:
        wanted = f"python -m pip install '.[{kind.extra}]'"
        raise QartsrError(f"--format {name}: needs the package {missing[0]}; in the checkout, run {wanted}")
    if path.suffix != kind.ending:
        raise QartsrError(f"{path}: name a file that ends in {kind.ending}")
    weights = path.with_suffix(".bin")  # OpenVINO's second file
    if name == "openvino" and (weights.is_dir() or weights.exists() and not path.exists()):
        raise QartsrError(f"{weights}: is there, and would be replaced; move it, or name another --out")
    return kind


@torch.no_grad()
def save_exported(model: OneStepSR, path: str | Path, name: str) -> Distance:
    """Write a quantized (or packed) model in the format `name`, once its engine has run it; OpenVINO's has a .bin too.

    Returns how far the engine's picture of a small test image is from the simulation's.

    Raises:
        QartsrError: see `check_export`; a model that is not quantized or not a plain one-step network; a layer or the
            picture is further from the simulation than `export_check` allows. No file is left then.
    """
    path = Path(path)
    kind = check_export(name, path)
    if type(model) is not OneStepSR:
        raise QartsrError(f"--format {name}: {model.name} cuts tiles in Python, no graph holds that; leave it out")
    simulated = _simulated(model, path)
    run, graph = kind.make(simulated)
    image = picture_of(simulated)
    check_layers(simulated, run, image, kind.limit, path)

    found: list[Distance] = []
    beside: list[Path] = []

    def write(temporary: Path) -> None:
        beside.append(temporary.with_suffix(".bin"))
        kind.save(graph, temporary)
        found.append(check_picture(simulated, kind.run(temporary), image, path))
        if beside[0].exists():
            flush(beside[0])

    try:
        write_atomically(path, write)
        if beside[0].exists():
            os.replace(beside[0], path.with_suffix(".bin"))
    finally:
        for weights in beside:
            weights.unlink(missing_ok=True)
    return found[0]


def _simulated(model: OneStepSR, path: Path) -> OneStepSR:
    """A network of InferenceLayers with the bits of `model`."""
    if any(isinstance(layer, InferenceLayer) for layer in model.modules()):
        return model
    if getattr(model, "quantization", None) is None:
        raise QartsrError(f"{path}: the model to export is not quantized; quantize it first")
    return inference_form(model)
