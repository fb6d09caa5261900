"""Notebook 03. What each part of Eq. (9) does: errors of a layer by component, and layer by layer over the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.base.registry import outside
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.qartsr import FinetuneLayer
from qartsr_lib.methods.setting import Setting, measured_layers
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import QuantState, calibrate, in_state
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import Profile
from qartsr_lib.training.finetuning.losses import normalized_mse

Cell = tuple[str, int]
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
RATE = 3e-3
_CHUNK = 8  # layers whose inputs are held in memory at once


@torch.no_grad()
def layer_inputs(model: nn.Module, names: Sequence[str], images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What flows into the named layers of a full-precision model, batched over `images` (LQ, equal size)."""
    seen, unknown = {name: [] for name in names}, sorted(set(names) - set(layer_names(model)))
    if unknown:
        raise QartsrError(f"layer {unknown[0]!r}: the backbone has no Linear or Conv2d of that name")
    _watch(model, names, images, lambda name, given: seen[name].append(given))
    return {name: torch.cat(found) for name, found in seen.items()}


def layer_names(model: nn.Module) -> list[str]:
    """Names of the Linear and Conv2d layers, in order of definition."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _watch(
    model: nn.Module, names: Sequence[str], images: Sequence[torch.Tensor], see: Callable[[str, torch.Tensor], object]
) -> None:
    """Upscale `images` and show `see` the name and the input of each named layer as it computes."""
    with ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
            hooks.callback(hook.remove)
        for image in images:
            model.upscale(image)


def fit_layer(layer: nn.Module, inputs: torch.Tensor, bits: str, component: str, steps: int = 0) -> FinetuneLayer:
    """`layer` with Eq. (9) reduced to `component` (a key of COMPONENTS), calibrated on `inputs`.

    What the component trains is fitted to the layer's full-precision output by that many `steps` of Adam.
    """
    exponent, with_side, kinds = COMPONENTS[component]
    net = nn.Sequential(copy.deepcopy(layer))
    torch.manual_seed(0)
    quantize_(net, replace(SHARED_SETTING, layer_kind="finetune").at(bits))
    fitted = net[0]
    if not with_side:
        nn.init.zeros_(fitted.side_out)
    calibrate(net, net, [inputs])
    fitted.start(exponent)
    fitted.requires_grad_(False)
    chosen = [p for kind, parameters in fitted.tuned_parameters().items() if kind in kinds for p in parameters]
    if not chosen or not steps:
        return fitted
    for parameter in chosen:
        parameter.requires_grad_(True)
    target, optimizer = _output(fitted, inputs, QuantState.FULL_PRECISION), torch.optim.Adam(chosen)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2.0 * (1.0 - step / steps))
        optimizer.zero_grad()
        normalized_mse(fitted(inputs), target).backward()
        optimizer.step()
    return fitted


@torch.no_grad()
def _output(layer: QuantLayer, inputs: torch.Tensor, state: QuantState) -> torch.Tensor:
    with in_state(layer, state):
        return layer(inputs)


def _error(layer: QuantLayer, inputs: torch.Tensor) -> float:
    quantized, full = (_output(layer, inputs, s) for s in (QuantState.QUANTIZED, QuantState.FULL_PRECISION))
    return float(normalized_mse(quantized, full))


@torch.no_grad()
def channel_ranges(layer: nn.Module, inputs: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(lowest, highest), (c_in,) each, of a float layer's input and weight, before and after phi and L at W4A4."""
    fitted = fit_layer(layer, inputs, "W4A4", "phi, L")
    tensors = {
        "input": (inputs, fitted.input_axis),
        "input / phi": (fitted.scaled_input(inputs), fitted.input_axis),
        "weight": (fitted.weight, 1),
        "phi (W - L1 L2)": (fitted.folded_weight(), 1),
    }
    channels = {name: values.detach().movedim(axis, 0).flatten(1) for name, (values, axis) in tensors.items()}
    return {name: (rows.amin(1), rows.amax(1)) for name, rows in channels.items()}


def component_errors(
    profile: Profile,
    cell: Cell,
    names: Sequence[str],
    calibration: CalibrationList,
    images: int,
    bits: Sequence[str],
    steps: int,
) -> Measured:
    """Normalized output error of single layers: rows dataset, layer, bits, component (of COMPONENTS), error.

    Args:
        cell: (backbone, T).
        images: how many calibration crops; a layer's errors are on the crops that it is fitted to.
        steps: of training, where a component is trained.
    """
    backbone = load_backbone(*cell)
    asked = {"measurement": "anatomy, components", "layers": list(names), "bits": list(bits), "steps": steps}

    def measure(_: Cell) -> pd.DataFrame:
        inputs, rows = layer_inputs(backbone, names, calibration.images[:images]), []
        for name, width, component in progress(list(product(names, bits, COMPONENTS)), "anatomy"):
            layer = fit_layer(backbone.get_submodule(name), inputs[name], width, component, steps)
            rows.append((calibration.name, name, width, component, _error(layer, inputs[name])))
        return pd.DataFrame(rows, columns=["dataset", "layer", "bits", "component", "error"])

    return measure_questions(profile.name, {cell: _question(backbone, cell, calibration, images, asked)}, measure)


def errors_over_the_network(
    profile: Profile,
    cell: Cell,
    trained: Mapping[str, nn.Module],
    calibration: CalibrationList,
    images: int,
    options: Mapping[str, Sequence[tuple[str, object]]],
) -> Measured:
    """Normalized output error of every layer alone, fed by full precision, for MaxMin, Eq. (9) untrained, and QArtSR.

    Rows dataset, bits, position (in order of inference), layer, method, error.

    Args:
        cell: (backbone, T).
        trained: bits -> QArtSR's result.
        images: how many calibration crops.
        options: bits -> with which it was trained, on the profile's first seed.
    """
    backbone, setting, seed, questions = load_backbone(*cell), dict(profile.setting), profile.seeds[0], {}
    for bits in trained:
        asked = {"measurement": "anatomy, layers", "bits": bits, "options": [list(option) for option in options[bits]]}
        asked |= {"seed": seed} if seed else {}  # 0 in records that name none
        asked |= measured_layers(options[bits], cell[0])
        questions[bits] = _question(backbone, cell, calibration, images, asked)

    def measure(bits: str) -> pd.DataFrame:
        models = {
            "MaxMin": METHODS.get("maxmin").build(backbone, bits, calibration.images, **setting).backbone,
            "Eq. (9) before training": METHODS.get("qartsr").untrained(
                backbone, bits, calibration.images, seed, Setting(**setting)
            ),
            "QArtSR": trained[bits],
        }
        order: dict[str, None] = {}  # the layers in order of inference
        _watch(backbone, layer_names(backbone), calibration.images[:1], lambda name, _: order.update({name: None}))
        rows = []
        for start in progress(range(0, len(order), _CHUNK), "layer errors"):
            inputs = layer_inputs(backbone, list(order)[start : start + _CHUNK], calibration.images[:images])
            for (name, given), (label, model) in product(inputs.items(), models.items()):
                rows.append((calibration.name, bits, name, label, _error(model.get_submodule(name), given)))
        frame = pd.DataFrame(rows, columns=["dataset", "bits", "layer", "method", "error"])
        frame.insert(2, "position", pd.factorize(frame["layer"])[0])
        return frame

    return measure_questions(profile.name, questions, measure)


def _question(backbone: nn.Module, cell: Cell, calibration: CalibrationList, images: int, asked: dict) -> dict:
    return {
        "parameters": {"backbone": cell[0], "timestep": cell[1], **asked},
        "weights_sha256": backbone.weights_sha256,
        "calibration": {"name": calibration.name, "sha256": calibration.sha256, "images": images},
    } | outside(cell[0])
