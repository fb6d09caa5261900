"""A quantized network as an ONNX graph, which ONNX Runtime and OpenVINO read, with integer weights.

Weights are unsigned integers of 2, 4 or 8 bits, made floats by Cast, Mul and Add. QuantizeLinear is not used: its
zero-points are integers, those here are real.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.deploy.export_check import Run
from qartsr_lib.deploy.traced import TracedNetwork, traced_input

LARGEST = 16384
"""Longest side that the graph's description allows, in pixels."""
OPSETS = {2: 25, 4: 21, 8: 21}
"""Narrowest integers in a graph -> version of ONNX's operations that has them; the older, the more engines read it."""


def make_onnx(model: OneStepSR, run: Callable[[bytes | Path], Run], widths: Sequence[int]) -> tuple[Run, bytes]:
    """`export.Format.make` for the engine `run`, which reads integers of `widths` bits, from the least on."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    def folds(node) -> bool | None:  # weights stay integers
        return False if any(value is not None and _is_codes(value) for value in node.inputs) else None

    all_codes = [tensor for name, tensor in model.named_buffers() if name.endswith(".codes")]
    narrowest = min(_width(int(codes.max()), widths) for codes in all_codes)
    graph = _traced(TracedNetwork(model), model.multiple, OPSETS[narrowest])
    optimizer.fold_constants(graph, should_fold=folds)
    common.RemoveUnusedNodesPass()(graph)
    for value in graph.graph.initializers.values():
        if _is_codes(value):
            value.const_value = _packed(value, widths)
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
    return run(tapped.SerializeToString()), written.SerializeToString()


def _traced(network: TracedNetwork, side: int, opset: int):
    """The network as an onnx_ir.Model that gives "image" and, of each layer in order, "<name>:in" and "<name>:out"."""
    example, shapes = traced_input(side, LARGEST)
    network(example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            optimize=False,  # it would turn small weights into floats
            input_names=["upscaled"],
            output_names=network.names,
            verbose=False,
        ).model


def _is_codes(value) -> bool:
    return value.is_initializer() and value.name.endswith(".codes")


def _width(largest: int, widths: Sequence[int]) -> int:
    """Bits of the narrowest integer for codes up to `largest`."""
    return next(bits for bits in widths if largest < 2**bits)


def _packed(value, widths: Sequence[int]):
    """The codes of an initializer as a tensor of the narrowest integers."""
    import ml_dtypes
    import onnx_ir

    codes = value.const_value.numpy()
    bits = _width(int(codes.max()), widths)
    return onnx_ir.tensor(codes if bits == 8 else codes.astype(getattr(ml_dtypes, f"uint{bits}")), name=value.name)


def save_openvino(graph: bytes, path: Path) -> None:
    """The graph as OpenVINO's .xml and .bin."""
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)


def run_onnx(graph: bytes | Path) -> Run:
    """ONNX Runtime on a CPU, with its default optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    given = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    entry = session.get_inputs()[0].name

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(names, {entry: image.contiguous().numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return run


def run_openvino(graph: bytes | Path) -> Run:
    """OpenVINO on a CPU in float32; by default it takes bfloat16 where the processor has it."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = compiled(image.contiguous().numpy())
        return {name: torch.from_numpy(np.array(value)) for key, value in found.items() for name in key.names}

    return run
