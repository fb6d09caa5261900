"""A quantized network as a program of ExecuTorch: convolutions and linear layers by XNNPACK, the rest by its kernels.

Weights are float32: XNNPACK has integer ones for integer activations alone, which is another network, and dequantized
while it runs they would leave convolutions to ExecuTorch's own kernels (measured: a quarter of the size, 45 times the
time). XNNPACK gets layers one by one, because its partitioner joins neighbours in a time that grows with the square of
their number: that of a network had not ended after five minutes of processor time. Nor is the whole graph sorted again
after each of them, see `_in_order`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.export_check import Run, picture_of
from qartsr_lib.deploy.traced import TracedLayer, TracedNetwork, traced_input

LARGEST = 512
"""Longest side of the upscaled image in pixels: the program reserves memory for it when it is loaded."""


class _Image(nn.Module):
    """The first output of a TracedNetwork alone."""

    def __init__(self, network: TracedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, upscaled: torch.Tensor) -> torch.Tensor:
        return self.network(upscaled)[0]


def make_executorch(model: OneStepSR) -> tuple[Run, bytes]:
    """`export.Format.make` for ExecuTorch."""
    # In one layout: ExecuTorch's kernels refuse two tensors of different ones.
    network = copy.deepcopy(TracedNetwork(model)).to(memory_format=torch.contiguous_format).eval()
    _divide_by_channel(network)
    tapped = _program(network, model.multiple, max(picture_of(model).shape))  # memory for all of its outputs
    return run_executorch(tapped, network.names), _program(_Image(network), model.multiple, LARGEST)


def run_executorch(program: bytes | Path, names: Sequence[str] = ("image",)) -> Run:
    """ExecuTorch's runtime on a CPU; `names` of the program's outputs in order. QartsrError where it cannot load it."""
    from executorch.runtime import Runtime

    try:
        loaded = Runtime.get().load_program(program)  # whose bytes its methods go on reading
        loaded.load_method("forward")
    except (MemoryError, RuntimeError) as error:
        raise QartsrError(
            f"--format executorch: its runtime cannot load the program ({str(error) or 'no memory'}), which reserves "
            f"memory for images of {LARGEST} pixels a side; free some, or take another format"
        ) from error

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = loaded.load_method("forward").execute([image.contiguous()])
        return dict(zip(names, found, strict=True))

    return run


def _divide_by_channel(network: nn.Module) -> None:
    """Give layers with one divisor of their input one for each channel, in place.

    ExecuTorch multiplies with the reciprocal of a single number: a third of the quotients are not the nearest numbers,
    and now and then a value between two codes gets the other one.
    """
    for layer in network.modules():
        if isinstance(layer, TracedLayer) and layer.input_scale is not None and layer.input_scale.numel() == 1:
            channels = layer.codes.shape[1] * layer.geometry.groups
            size = (channels, 1, 1) if layer.is_convolution else (channels,)
            layer.input_scale = layer.input_scale.reshape(1).repeat(channels).view(size)


def _program(network: nn.Module, side: int, largest: int) -> bytes:
    """The .pte of a network of (1, 3, H, W), for all H and W up to `largest` that divide by `side`."""
    from executorch.backends.xnnpack.partition import config
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    example, shapes = traced_input(side, largest)
    layers = [config.ConvolutionConfig, config.LinearConfig, config.AddmmConfig]
    logging.disable()  # of its own choices, thousands of lines
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network, (example,), dynamic_shapes=shapes)
            folded = constant_prop_pass(exported.run_decompositions({}))
            partitioner = XnnpackPartitioner(configs=layers, per_op_mode=True)
            with _in_order():
                return to_edge_transform_and_lower(folded, partitioner=[partitioner]).to_executorch().buffer
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    """Let ExecuTorch leave a graph in its order when it takes a layer out of it.

    It copies, sorts and compiles the whole graph for each layer, for partitions of several operations; one operation is
    replaced in its place (torch.fx's insert_subgm). There is no option for it in executorch 1.5.1.
    """
    from executorch.exir.backend import backend_api

    own = backend_api.create_submodule_from_nodes
    backend_api.create_submodule_from_nodes = partial(own, skip_legalize_graph=True)
    try:
        yield
    finally:
        backend_api.create_submodule_from_nodes = own
