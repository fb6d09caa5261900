"""What each part of Eq. (9) does to one layer: errors by component, and layer by layer over the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.methods.qartsr_layers import FinetuneLayer
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import QuantState, calibrate, full_precision
from qartsr_lib.training.finetuning.losses import normalized_mse

#: (lowest, highest), (c_in,) each.
Range = tuple[torch.Tensor, torch.Tensor]
#: Component -> (phi's exponent, with L, kinds of parameters trained on this layer's output).
COMPONENTS: dict[str, tuple[float, bool, tuple[str, ...]]] = {
    "MaxMin": (0.0, False, ()),
    "phi": (0.3, False, ()),
    "L": (0.0, True, ()),
    "phi, L": (0.3, True, ()),
    "bounds trained": (0.0, False, ("bounds",)),
    "bounds, phi trained": (0.3, False, ("bounds", "phi")),
    "bounds, F trained": (0.0, False, ("bounds", "merged")),
    "bounds, L trained": (0.0, True, ("bounds", "side")),
    "all trained": (0.3, True, ("bounds", "phi", "merged", "side")),
}


@torch.no_grad()
def layer_inputs(model: nn.Module, names: Sequence[str], images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What flows into the named layers of a full-precision model, batched over `images` (LQ, equal size).

    Raises:
        QartsrError: no layer of that name.
    """
    layers, seen = dict(model.named_modules()), {name: [] for name in names}
    hooks = []
    for name in names:
        if not isinstance(layers.get(name), nn.Linear | nn.Conv2d):
            raise QartsrError(f"layer {name!r}: the backbone has no Linear or Conv2d of that name")
        keep = seen[name].append
        hooks.append(layers[name].register_forward_pre_hook(lambda _, given, keep=keep: keep(given[0])))
    try:
        for image in images:
            model.upscale(image)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(found) for name, found in seen.items()}


def build_layer(layer: nn.Module, inputs: torch.Tensor, bits: str, component: str) -> FinetuneLayer:
    """`layer` with Eq. (9) reduced to `component` (a key of COMPONENTS), calibrated on `inputs`, not trained."""
    exponent, with_side, _ = COMPONENTS[component]
    net = nn.Sequential(copy.deepcopy(layer))
    torch.manual_seed(0)
    quantize_(net, replace(SHARED_SETTING, layer_kind="finetune").at(bits))
    if not with_side:
        nn.init.zeros_(net[0].side_out)
    calibrate(net, net, [inputs])
    net[0].start(exponent)
    return net[0]


def train_layer(layer: FinetuneLayer, inputs: torch.Tensor, component: str, steps: int, rate: float = 3e-3) -> None:
    """Fit the parameters that `component` trains to the layer's full-precision output, by Adam."""
    kinds = COMPONENTS[component][2]
    chosen = [p for kind, parameters in layer.tuned_parameters().items() if kind in kinds for p in parameters]
    for parameter in layer.parameters():
        parameter.requires_grad_(any(parameter is one for one in chosen))
    if not chosen:
        return
    target, optimizer = float_output(layer, inputs), torch.optim.Adam(chosen, lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2.0 * (1.0 - step / steps))
        optimizer.zero_grad()
        normalized_mse(layer(inputs), target).backward()
        optimizer.step()


@torch.no_grad()
def float_output(layer: QuantLayer, inputs: torch.Tensor) -> torch.Tensor:
    """The full-precision output of a quantized layer."""
    with full_precision(layer):
        return layer(inputs)


def channel_ranges(layer: nn.Module, inputs: torch.Tensor, bits: str = "W4A4") -> dict[str, Range]:
    """Lowest and highest value per input channel of a float layer's input and weight, before and after phi and L."""
    fitted = build_layer(layer, inputs, bits, "phi, L")
    axis = fitted.input_axis
    with torch.no_grad():
        return {
            "input": _range(inputs, axis),
            "input / phi": _range(fitted.scaled_input(inputs), axis),
            "weight": _range(fitted.weight, 1),
            "phi (W - L1 L2)": _range(fitted.folded_weight(), 1),
        }


def _range(x: torch.Tensor, axis: int) -> Range:
    channels = x.detach().movedim(axis, 0).flatten(1)
    return channels.amin(1), channels.amax(1)


def component_errors(
    model: nn.Module, names: Sequence[str], images: Sequence[torch.Tensor], bits: Sequence[str], steps: int
) -> pd.DataFrame:
    """Normalized output error of single layers: rows layer, bits, component, error.

    Args:
        model: full precision.
        images: LQ images of equal size; errors are on the images the layer is fitted to.
        steps: of training, where a component is trained.
    """
    inputs, layers, rows = layer_inputs(model, names, images), dict(model.named_modules()), []
    for name in progress(names, "anatomy"):
        for width in bits:
            for component in COMPONENTS:
                layer = build_layer(layers[name], inputs[name], width, component)
                train_layer(layer, inputs[name], component, steps)
                rows.append((name, width, component, _error(layer, inputs[name])))
    return pd.DataFrame(rows, columns=["layer", "bits", "component", "error"])


@torch.no_grad()
def errors_over_the_network(
    backbone: nn.Module, quantized: Mapping[str, nn.Module], images: Sequence[torch.Tensor]
) -> pd.DataFrame:
    """Normalized output error of every layer alone, fed by full precision: rows position, layer, method, error.

    Args:
        backbone: full precision.
        quantized: label -> a quantized copy of it.
        images: LQ images of equal size.
    """
    rows = []
    names = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    order = _inference_order(backbone, names, images[0])
    for start in progress(range(0, len(order), _CHUNK), "layer errors"):
        inputs = layer_inputs(backbone, order[start : start + _CHUNK], images)
        for position, (name, given) in enumerate(inputs.items(), start=start):
            for label, model in quantized.items():
                rows.append((position, name, label, _error(model.get_submodule(name), given)))
    return pd.DataFrame(rows, columns=["position", "layer", "method", "error"])


_CHUNK = 8
"""Layers whose inputs are held in memory at once."""


def _inference_order(model: nn.Module, names: Sequence[str], image: torch.Tensor) -> list[str]:
    order: list[str] = []
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name in names]
    try:
        model.upscale(image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


@torch.no_grad()
def _error(layer: QuantLayer, inputs: torch.Tensor) -> float:
    state = layer.state
    layer.set_state(QuantState.QUANTIZED)
    try:
        return float(normalized_mse(layer(inputs), float_output(layer, inputs)))
    finally:
        layer.set_state(state)
