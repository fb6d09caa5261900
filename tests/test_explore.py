"""What a notebook's sliders show of a layer and of a photograph."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_qartsr_layers import converted, float_layers, jiggle
from torch import nn

import qartsr_lib.methods.qartsr  # noqa: F401  registers the layer kind
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import read_image
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.scheme import QuantScheme
from qartsr_lib.show import explore
from qartsr_lib.show.shown import Picture


def test_the_weight_in_effect_is_what_the_layer_computes_with():
    reference, layer, x = converted("conv")
    jiggle(layer, ["side_out", "merged_out", "log_phi"])
    layer.input_quantizer = layer.bias_quantizer = None
    codes, found = explore.layer_weights(layer)
    wanted = F.conv2d(x, found, reference.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), wanted, atol=1e-4)
    assert codes.shape == layer.weight.shape and set(codes.unique().tolist()) <= set(range(16))


def test_without_components_it_is_maxmin():
    reference, layer, _ = converted("linear")
    jiggle(layer, ["side_out", "merged_out", "log_phi"])
    plain = nn.Sequential(float_layers()["linear"])
    quantize_(plain, QuantScheme().at("W4A4"))
    wanted = plain[0].weight_quantizer(reference.weight)
    assert torch.equal(explore.layer_weights(layer, ())[1], wanted)
    assert torch.equal(explore.layer_weights(plain[0])[1], wanted), "a layer of another method"


def test_a_layer_is_drawn_and_an_unknown_one_named():
    reference, layer, _ = converted("conv")
    model, quantized = nn.Sequential(reference), nn.Sequential(layer)
    assert explore.layers(model) == explore.layers(quantized) == ["0"]
    figure = explore.layer_view(model, quantized, "0", ("L", "phi"))
    assert figure.axes[0].images[0].get_array().shape == (20, 72)
    with pytest.raises(QartsrError, match="layer 'none'"):
        explore.layer_view(model, quantized, "none")


def test_photographs_and_crops(home):
    hr, lq = explore.photograph("chelsea", (64, 128, 64))
    assert hr.shape == (1, 3, 64, 64) and lq.shape == (1, 3, 16, 16)
    whole = read_image(explore.sample_pair("chelsea").lq)
    assert torch.equal(whole[..., 16:32, 32:48], lq)
    for name, crop, words in (
        ("none", (0, 0, 64), "choose one of"),
        ("chelsea", (0, 0, 640), "outside"),
        ("chelsea", (0, 64), r"crop \[0, 64\]"),
    ):
        with pytest.raises(QartsrError, match=words):
            explore.photograph(name, crop)


def test_what_menus_begin_with_is_checked_before_models_are_trained(home):
    """A menu refuses what it has not in many lines."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    explore.check(model, "0", "chelsea", [0, 0, 64])
    for layer, name, crop, words in (
        ("conv_in", "chelsea", [0, 0, 64], "layer 'conv_in': no Linear or Conv2d; such as 0"),
        ("0", "moon", [0, 0, 64], "photograph 'moon': choose one of"),
        ("0", "chelsea", [0, 0], r"crop \[0, 0\]: outside"),
    ):
        with pytest.raises(QartsrError, match=words):
            explore.check(model, layer, name, crop)


def test_before_and_after():
    left, right = np.zeros((8, 6, 3), np.uint8), np.full((8, 6, 3), 255, np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(explore.before_after(left, right, 2).content)))
    assert shown.shape == (24, 18, 3)
    assert not shown[:, :6].any()
    assert (shown[:, 6:] == 255).all()


def test_controls_draw_at_once_and_tell_what_cannot_be_drawn():
    widgets = pytest.importorskip("ipywidgets")

    def draw(number):
        if number > 2:
            raise QartsrError("too many")
        return Picture(bytes([number]))

    box = explore.answering(draw, number=widgets.IntSlider(1, 0, 9))
    slider, picture, told = box.children
    assert (slider.description, picture.value, told.value) == ("number", b"\x01", "")
    slider.value = 3
    assert (picture.value, told.value) == (b"\x01", "too many"), "the picture stays"
    slider.value = 2
    assert (picture.value, told.value) == (b"\x02", "")
