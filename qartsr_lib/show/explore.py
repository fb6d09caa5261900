"""Look into one layer and one photograph: pure functions behind the sliders of a notebook; sample photographs only."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError, did_you_mean
from qartsr_lib.images.image import read_image, to_uint8
from qartsr_lib.quant.granularity import broadcast_along
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.primitives import dequantize, quantize
from qartsr_lib.quant.quantizers import Quantizer
from qartsr_lib.show.figures.pictures import Box
from qartsr_lib.show.figures.style import styled, subplots
from qartsr_lib.show.shown import Picture
from qartsr_lib.study.experiments.anatomy import layer_names as layers
from qartsr_lib.study.experiments.theorem import sample_pair

if TYPE_CHECKING:
    from ipywidgets import Widget

#: Part of Eq. (9) (side branch, update, transformation) -> the attribute of layers that have it.
COMPONENTS = {"L": "side_out", "F": "merged_out", "phi": "log_phi"}


def check(model: nn.Module, layer: str, name: str, crop: Sequence[int]) -> None:
    """A QartsrError unless `layer` is one of `layers`, and `photograph` has that crop: before models are trained."""
    known = layers(model)
    if layer not in known:
        near = did_you_mean(layer, known) or f"such as {known[0]}"
        raise QartsrError(f"layer {layer!r}: no Linear or Conv2d; {near}")
    photograph(name, crop)


def photograph(name: str, crop: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(original, its low-quality version) of a part of a sample photograph, (1, 3, n, n) and (1, 3, n/4, n/4).

    `crop`: top, left, size in pixels of the original, multiples of four.

    Raises:
        QartsrError: no such photograph, or a crop outside of it.
    """
    pair = sample_pair(name)
    hr, lq = read_image(pair.hr), read_image(pair.lq)
    if len(crop) != 3 or not Box(*crop).inside(*hr.shape[-2:]) or any(number % 4 for number in crop):
        raise QartsrError(f"crop {list(crop)}: outside of the photograph {name}, or no multiples of four")
    return Box(*crop).cut(hr), Box(*(number // 4 for number in crop)).cut(lq)


@torch.no_grad()
def layer_weights(layer: QuantLayer, components: Collection[str] = COMPONENTS) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, the weight that the layer then has in effect), both like its W, with some components of Eq. (9).

        W^ = L1 L2 + Q_W(phi (W - L1 L2 + F1 F2)) / phi

    Components that the layer lacks change nothing. With all of them Q_W is the layer's own, else its range is set anew
    by the smallest and largest value.
    """
    weight = layer.weight
    has = {name for name, attribute in COMPONENTS.items() if hasattr(layer, attribute)}
    on = has & set(components)
    side = (layer.side_out @ layer.side_in).view_as(weight) if "L" in on else 0.0
    phi = broadcast_along(layer.log_phi.exp(), 1, weight.ndim) if "phi" in on else 1.0
    update = (layer.merged_out @ layer.merged_in).view_as(weight) if "F" in on else 0.0
    if on == has:
        folded, quantizer = layer.folded_weight(), layer.weight_quantizer
    else:
        folded = phi * (weight - side + update)
        quantizer = Quantizer(layer.weight_quantizer.config, weight.shape, layer.name)
        quantizer.set_range_from(folded)
    grouped = quantizer.config.granularity.view(folded)
    scale, zero_point = quantizer.qparams(grouped)
    codes = quantize(grouped, scale, zero_point, *quantizer.code_range)
    return codes.view_as(weight), dequantize(codes, scale, zero_point).view_as(weight) / phi + side


@styled
def layer_view(model: nn.Module, quantized: nn.Module, name: str, components: Collection[str] = COMPONENTS) -> Figure:
    """Codes of a layer's weight as an image, values of W and W^ (`layer_weights`), and the error by output channel.
    `model`: in full precision; `quantized`: the same network; `name`: of `layers`.

    Raises:
        QartsrError: no such layer, or one whose weight is not quantized.
    """
    layer = dict(quantized.named_modules()).get(name)
    if not isinstance(layer, QuantLayer) or layer.weight_quantizer is None:
        raise QartsrError(f"layer {name!r}: the model quantizes no weight of that name")
    weight = model.get_submodule(name).weight.detach()
    codes, found = layer_weights(layer, components)
    error = (found - weight).flatten(1).square().mean(1) / weight.square().mean()
    figure, ((image, values, channels),) = subplots(1, 3, (11, 3.2))
    shown = image.imshow(codes.flatten(1), aspect="auto", interpolation="nearest", cmap="viridis")
    figure.colorbar(shown, ax=image)
    image.set(title=f"codes, {layer.weight_quantizer.config.bits} bits", xlabel="input", ylabel="output channel")
    image.grid(visible=False)
    bins = np.histogram_bin_edges(weight.flatten().numpy(), 101)
    for label, tensor in (("W", weight), ("W^", found)):
        values.hist(tensor.flatten().numpy(), bins=bins, histtype="step", label=label)
    values.set(title=name, yscale="log", xlabel="value", ylabel="weights")
    values.legend()
    channels.plot(error.numpy(), ".", ms=4)
    channels.set(title=f"error, mean {error.mean():.3g}", yscale="log", xlabel="output channel")
    channels.set_ylabel("squared error / mean square of W")
    return figure


@torch.no_grad()
def upscaled(model: OneStepSR, name: str, crop: Sequence[int]) -> np.ndarray:
    """A model's output of a sample photograph, (H, W, 3) of bytes; see `photograph`."""
    return to_uint8(model.upscale(photograph(name, crop)[1]))


def before_after(left: np.ndarray, right: np.ndarray, line: int) -> Picture:
    """Two equally large pictures, (H, W, 3) of bytes, joined at column `line` and drawn at three times their size."""
    stream = io.BytesIO()
    joined = Image.fromarray(np.concatenate([left[:, :line], right[:, line:]], axis=1))
    joined.resize((3 * joined.width, 3 * joined.height), Image.Resampling.NEAREST).save(stream, "PNG")
    return Picture(stream.getvalue())


def answering(draw: Callable[..., Picture], **controls: Widget) -> Widget:
    """Controls above the picture that `draw` makes of their values, each time that one of them changes.

    Values that cannot be drawn (QartsrError) are told below the picture, which stays.
    """
    import ipywidgets  # of the notebooks alone

    picture, told = ipywidgets.Image(format="png"), ipywidgets.Label()

    def answer(change: object = None) -> None:
        try:
            picture.value, told.value = draw(**{name: control.value for name, control in controls.items()}).content, ""
        except QartsrError as error:
            told.value = str(error)

    for name, control in controls.items():
        control.description = name
        control.observe(answer, "value")
    answer()
    return ipywidgets.VBox([*controls.values(), picture, told], layout={"align_items": "flex-start"})
