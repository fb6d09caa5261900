"""How far another way of computing is from the simulation: images in grey levels, layers one by one."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from qartsr_lib.deploy.layer import InferenceLayer


def grey_levels(image: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Largest and mean difference of two images in [0, 1], after clamping, in levels of 255."""
    apart = (image.float().clamp(0, 1) - other.float().clamp(0, 1)).abs() * 255
    return {"largest": round(float(apart.max()), 4), "mean": round(float(apart.mean()), 5)}


def exact_output(layer: InferenceLayer, x: torch.Tensor) -> torch.Tensor:
    """A layer's output with products and sums in float64; codes and the branch in 16 bits are the layer's own."""
    scaled = layer.scaled_input(x)
    bias = None if layer.bias is None else layer.bias.double()
    y = layer.operate(layer.quantized_input(scaled).double(), layer.weight().double(), bias)
    if layer.behind is not None:
        y = y + layer.constant(x).double()
    if layer.side_out is not None:
        y = y + layer.side_branch(scaled if layer.form.side_after_scaling else x).double()
    return y


@torch.no_grad()
def layers_apart(simulation: nn.Module, integer: nn.Module, image: torch.Tensor) -> dict[str, object]:
    """Every layer of `integer` fed with the simulation's input, against `exact_output`.

    Args:
        simulation: of InferenceLayers, float32.
        integer: its integer form with float32 outputs.
        image: input of the simulation.

    Returns:
        "layers", and for the integer form and the simulation itself the largest difference over the
        largest output: "worst", "median" over the layers, and the "worst_layer".
    """
    found: dict[str, dict[str, float]] = {"integer": {}, "simulation": {}}

    def compare(name: str):
        def hook(layer: InferenceLayer, inputs: tuple[torch.Tensor], y: torch.Tensor) -> None:
            wanted = exact_output(layer, inputs[0])
            size = wanted.abs().max().clamp(min=1e-30)
            for what, output in (("integer", integer.get_submodule(name)(inputs[0])), ("simulation", y)):
                found[what][name] = float((output.double() - wanted).abs().max() / size)

        return hook

    layers = {name: layer for name, layer in simulation.named_modules() if isinstance(layer, InferenceLayer)}
    handles = [layer.register_forward_hook(compare(name)) for name, layer in layers.items()]
    try:
        simulation(image)
    finally:
        for handle in handles:
            handle.remove()
    return {"layers": len(found["integer"])} | {
        what: {
            "worst": max(apart.values()),
            "median": statistics.median(apart.values()),
            "worst_layer": max(apart, key=apart.get),
        }
        for what, apart in found.items()
    }
