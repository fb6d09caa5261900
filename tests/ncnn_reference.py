"""Another reader of ncnn's .param and .bin files: plain convolutional networks, layer by layer in torch's functions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

HALF = 0x01306B47  # before weights of 16 bits; 0 before weights of 32
_BINARY = {0: torch.add, 1: torch.sub, 2: torch.mul}


class Layer(NamedTuple):
    kind: str
    inputs: list[str]
    outputs: list[str]
    options: dict[int, str]
    weights: tuple[torch.Tensor, ...] = ()  # of a convolution: kernel and bias
    constant: torch.Tensor | None = None


def read_graph(param: Path, weights: Path) -> list[Layer]:
    raw, place, layers = weights.read_bytes(), 0, []

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(raw, kind, count, place)
        place += -(-found.nbytes // 4) * 4  # whole words
        return found

    def floats(count: int) -> torch.Tensor:
        return torch.from_numpy(take("<f4", count).astype(np.float64))

    for line in param.read_text().splitlines()[2:]:
        kind, _, n_in, n_out, *rest = line.split()
        names, options = rest[: int(n_in) + int(n_out)], rest[int(n_in) + int(n_out) :]
        options = {int(key): value for key, value in (option.split("=") for option in options)}
        layer = Layer(kind, names[: int(n_in)], names[int(n_in) :], options)
        if kind == "MemoryData":
            layer = layer._replace(constant=floats(int(options[2])).view(1, -1, 1, 1))
        if kind == "Convolution":
            flag, count, channels = int(take("<u4", 1)[0]), int(options[6]), int(options[0])
            assert flag in (0, HALF), hex(flag)
            kernel = torch.from_numpy(take("<f2", count).astype(np.float64)) if flag else floats(count)
            side = int(options[1])
            layer = layer._replace(weights=(kernel.view(channels, -1, side, side), floats(channels)))
        layers.append(layer)
    assert place == len(raw), "the files do not fit each other"
    return layers


def forward(layers: list[Layer], image: torch.Tensor) -> torch.Tensor:
    """float64 (1, 3, h, w) -> (1, 3, 4h, 4w)"""
    blobs = {}
    for layer in layers:
        result = _apply(layer, [blobs[name] for name in layer.inputs], image)
        blobs |= dict.fromkeys(layer.outputs, result)
    return blobs["output"]


def _apply(layer: Layer, values: list[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    options = layer.options
    match layer.kind:
        case "Input":
            return image
        case "MemoryData":
            return layer.constant
        case "Convolution":
            result = F.conv2d(values[0], *layer.weights, padding=int(options.get(4, 0)))
            return F.leaky_relu(result, float(options[-23310].split(",")[1])) if options.get(9) == "2" else result
        case "Split":
            return values[0]
        case "Concat":
            return torch.cat(values, 1)
        case "Swish":
            return F.silu(values[0])
        case "Sigmoid":
            return torch.sigmoid(values[0])
        case "Eltwise":
            shares = [float(share) for share in options[-23301].split(",")[1:]]
            return sum(share * value for share, value in zip(shares, values, strict=True))
        case "BinaryOp":
            other = float(options[2]) if options.get(1) == "1" else values[1]
            return _BINARY[int(options.get(0, 0))](values[0], other)
        case "Interp":
            assert options[0] == "1", "nearest"
            return F.interpolate(values[0], scale_factor=float(options[1]), mode="nearest")
        case "PixelShuffle":
            return F.pixel_shuffle(values[0], int(options[0]))
    raise AssertionError(f"no such layer: {layer.kind}")
