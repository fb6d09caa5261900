"""A quantized model as an ONNX file or as OpenVINO's, with integer weights, checked by the engine that will run it.

The graph takes the upscaled image ("upscaled", (1, 3, H, W) in [0, 1], sides divide by the network's `multiple`) and
gives the result ("image", like it). Bicubic enlargement, padding and cropping stay outside, as `OneStepSR.upscale` does
them. Weights are unsigned integers of 2, 4 or 8 bits, made floats by Cast, Mul and Add; quantizers of activations are
plain float operations (`traced`). QuantizeLinear is not used: its zero-points are integers, those here are real.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically
from qartsr_lib.deploy.export_check import Distance, check_layers, check_picture, picture_of, run_onnx, run_openvino
from qartsr_lib.deploy.layer import InferenceLayer, inference_form
from qartsr_lib.deploy.traced import TracedNetwork

LARGEST = 16384
"""Longest side that the graph's description allows, in pixels."""
OPSETS = {2: 25, 4: 21, 8: 21}
"""Narrowest integers in a graph -> version of ONNX's operations that has them; the older, the more engines read it."""
INPUT, OUTPUT = "upscaled", "image"


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        ending: of the file's name.
        packages: that it needs, all in pyproject.toml's `export`.
        widths: bits of integers that its engine reads, from the least on.
        run: see `export_check.Run`.
        limit: of one layer's error, see `check_layers`.
    """

    ending: str
    packages: tuple[str, ...]
    widths: tuple[int, ...]
    run: Callable
    limit: float


#: OpenVINO 2026.4 refuses UINT2 in ONNX files. ONNX Runtime differs in the order of sums and in what is rounded to
#: bfloat16 then; OpenVINO fuses multiply and add, so that now and then a value between two codes gets the other one.
FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), (2, 4, 8), run_onnx, 1e-3),
    "openvino": Format(".xml", ("onnx", "onnxscript", "openvino"), (4, 8), run_openvino, 5e-3),
}


def check_export(name: str, path: Path) -> Format:
    """The format of that name; QartsrError where a package is missing or `path` has another ending."""
    kind = FORMATS[name]
    missing = [package for package in kind.packages if importlib.util.find_spec(package) is None]
    if missing:
        wanted = "python -m pip install '.[export]'"
        raise QartsrError(f"--format {name}: needs the package {missing[0]}; in the checkout, run {wanted}")
    if path.suffix != kind.ending:
        raise QartsrError(f"{path}: name a file that ends in {kind.ending}")
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
    tapped, graph = _graphs(simulated, kind)
    image = picture_of(simulated)
    check_layers(simulated, kind.run(tapped.SerializeToString()), image, kind.limit, path)

    found: list[Distance] = []

    def write(temporary: Path) -> None:
        if name == "onnx":
            temporary.write_bytes(graph.SerializeToString())
        else:
            _save_openvino(graph.SerializeToString(), temporary)
        weights = temporary.with_suffix(".bin")
        try:
            found.append(check_picture(simulated, kind.run(temporary), image, path))
            if weights.exists():
                os.replace(weights, path.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)

    write_atomically(path, write)
    return found[0]


def _simulated(model: OneStepSR, path: Path) -> OneStepSR:
    """A network of InferenceLayers with the bits of `model`."""
    if any(isinstance(layer, InferenceLayer) for layer in model.modules()):
        return model
    if getattr(model, "quantization", None) is None:
        raise QartsrError(f"{path}: the model to export is not quantized; quantize it first")
    return inference_form(model)


def _graphs(model: OneStepSR, kind: Format):
    """(ONNX model that tells every layer's input and output too, the one to write)."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    def folds(node) -> bool | None:  # weights stay integers
        return False if any(value is not None and _is_codes(value) for value in node.inputs) else None

    all_codes = [tensor for name, tensor in model.named_buffers() if name.endswith(".codes")]
    narrowest = min(_width(int(codes.max()), kind) for codes in all_codes)
    graph = _traced(TracedNetwork(model), model.multiple, OPSETS[narrowest])
    optimizer.fold_constants(graph, should_fold=folds)
    common.RemoveUnusedNodesPass()(graph)
    for value in graph.graph.initializers.values():
        if _is_codes(value):
            value.const_value = _packed(value, kind)
            value.dtype = value.const_value.dtype
    common.ClearMetadataAndDocStringPass()(graph)
    constant = [value for value in graph.graph.outputs if value.is_initializer()]
    for value in constant:
        graph.graph.outputs.remove(value)
    tapped = onnx_ir.to_proto(graph)
    del graph.graph.outputs[1:]
    common.RemoveUnusedNodesPass()(graph)
    written = onnx_ir.to_proto(graph)
    written.graph.ClearField("value_info")  # shapes that engines infer themselves: a tenth of a small file
    return tapped, written


def _traced(network: TracedNetwork, side: int, opset: int):
    """The network as an onnx_ir.Model that gives "image" and, of each layer in order, "<name>:in" and "<name>:out"."""
    example = torch.rand(1, 3, 3 * side, 4 * side)
    network(example)
    names = [f"{layer}:{end}" for layer, *_ in network.taps.seen for end in ("in", "out")]
    rows, columns = (torch.export.Dim(name, min=2, max=LARGEST // side) * side for name in ("rows", "columns"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({2: rows, 3: columns},),
            opset_version=opset,
            optimize=False,  # it would turn small weights into floats
            input_names=[INPUT],
            output_names=[OUTPUT, *names],
            verbose=False,
        ).model


def _is_codes(value) -> bool:
    return value.is_initializer() and value.name.endswith(".codes")


def _width(largest: int, kind: Format) -> int:
    """Bits of the narrowest integer for codes up to `largest`."""
    return next(bits for bits in kind.widths if largest < 2**bits)


def _packed(value, kind: Format):
    """The codes of an initializer as a tensor of the narrowest integers."""
    import ml_dtypes
    import onnx_ir

    codes = value.const_value.numpy()
    bits = _width(int(codes.max()), kind)
    return onnx_ir.tensor(codes if bits == 8 else codes.astype(getattr(ml_dtypes, f"uint{bits}")), name=value.name)


def _save_openvino(graph: bytes, path: Path) -> None:
    """The graph as OpenVINO's .xml and .bin."""
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)
