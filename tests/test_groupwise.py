"""The study's own method: its layer against closed forms, its rounding against what it must be better than."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.methods import METHODS, groupwise
from qartsr_lib.methods.base import stored_bits
from qartsr_lib.methods.svdquant import RELEASED_SETTING
from qartsr_lib.quant.apply import quantize_, report
from qartsr_lib.quant.granularity import PerChannel
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.states import calibrate

assert METHODS.names()  # registers the layer kinds
KINDS = ("linear", "conv", "strided", "few pixels")


def layer_and_inputs(name):
    """Inputs whose channels depend on each other, behind a SiLU, as a network's."""
    torch.manual_seed(0)
    mixed = torch.randn(24, 24) / 5 + torch.eye(24)
    if name == "linear":
        return nn.Linear(24, 20), [F.silu(torch.randn(2, 90, 24) @ mixed) for _ in range(4)]
    size, stride = {"conv": (12, 1), "strided": (13, 2), "few pixels": (2, 1)}[name]
    layer = nn.Conv2d(24, 20, 3, stride=stride, padding=1)
    images = [F.silu(torch.einsum("nchw,cd->ndhw", torch.randn(2, 24, size, size), mixed)) for _ in range(12)]
    return layer, images


def converted(name, setting, bits="W2A2"):
    layer, images = layer_and_inputs(name)
    net = nn.Sequential(copy.deepcopy(layer))
    quantize_(net, setting.at(bits))
    calibrate(net, net, images)
    net[0].start()
    return layer, net, images


def error(layer, net, images):
    with torch.no_grad():
        return sum(float(F.mse_loss(net(x), layer(x))) for x in images)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bits", ["W2A2", "W3A3", "W4A4"])
def test_nearer_the_float_layer_than_svdquant_as_released(name, bits):
    ours = error(*converted(name, groupwise.SETTING, bits))
    assert ours < 0.9 * error(*converted(name, RELEASED_SETTING, bits))


def test_same_padding_is_the_padding_of_that_size():
    """A number of pixels, or the word: the same layer, weights and images."""
    torch.manual_seed(0)
    named, images = nn.Conv2d(24, 20, 3, padding="same"), layer_and_inputs("conv")[1]
    counted = nn.Conv2d(24, 20, 3, padding=1)
    counted.load_state_dict(named.state_dict())
    nets = [nn.Sequential(named), nn.Sequential(counted)]
    for net in nets:
        quantize_(net, groupwise.SETTING.at("W2A2"))
        calibrate(net, net, images)
        net[0].start()
    assert torch.equal(nets[0](images[0]), nets[1](images[0]))


def test_reflected_pixels_are_seen_in_windows():
    torch.manual_seed(0)
    net, image = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")), torch.randn(1, 4, 5, 5)
    quantize_(net, groupwise.SETTING.at("W2A2"))
    windows, on_image, _ = net[0]._some_windows(image)
    wanted = F.unfold(F.pad(image, (1, 1, 1, 1), "reflect"), 3)[0].t().unflatten(1, (4, 9))
    assert torch.equal(windows, wanted) and on_image.eq(1).all()


def test_of_more_images_evenly_spread_ones_are_kept(monkeypatch):
    monkeypatch.setattr(groupwise, "MOST", 4)
    net, kept = nn.Sequential(nn.Linear(24, 20)), []
    quantize_(net, groupwise.SETTING.at("W2A2"))
    for image in range(12):
        net[0].observe(torch.full((1, 90, 24), float(image)))
        kept.append([int(windows[0, 0]) for windows, *_ in net[0]._windows.kept])
    assert kept[3:6] == [[0, 1, 2, 3], [0, 2, 4], [0, 2, 4]] and kept[-1] == [0, 4, 8]


@pytest.mark.parametrize("signs", ["mixed", "one negative pixel", "none negative"])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_fitted_is_what_the_layer_computes(name, signs):
    """Window by window: products with the quantized weight, L x / phi and the bias are the layer's outputs.

    Codes have a sign where any value of the image is negative, in a window that is fitted or not.
    """
    few = (("windows", 3),) if signs == "one negative pixel" else ()
    _, net, images = converted(name, replace(groupwise.SETTING, layer_options=few))
    layer, x = net[0], images[0][:1]
    if signs != "mixed":
        x = x.abs()
        layer.offset.zero_()
    if few:
        signs = torch.ones(x[..., :1].shape if name == "linear" else x[:, :1].shape)
        signs.view(-1)[signs.numel() // 5] = -1  # in none of the three, save where the image is small
        x = x * signs
    with torch.no_grad():
        windows = layer._some_windows(x)
        seen, _ = layer._products(windows)
        weight, bias = layer.quantized_parameters()
        side = (layer.side_out @ layer.side_in).view_as(weight)
        scaled = windows[0] / layer.log_phi.exp().view(1, -1, 1)
        found = seen @ weight.flatten(1).t() + scaled.flatten(1) @ side.flatten(1).t() + bias
        y = layer(x)
        rows = y.reshape(-1, 20) if name == "linear" else y.movedim(1, -1).reshape(-1, 20)
        outputs = groupwise._spread(rows, layer.windows)
    assert len(found) == min(layer.windows, len(rows)) and torch.allclose(found, outputs, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_every_ingredient_brings_the_layer_nearer_and_without_any_it_is_svdquants(name):
    """Of 2 bits, and with all codes: nearest codes, feedback alone, the fit alone, both."""

    def error_with(**options):
        return error(*converted(name, replace(groupwise.SETTING, layer_options=tuple(options.items()))))

    all_codes = error(*converted(name, replace(RELEASED_SETTING, narrow_range=False)))
    neither = error_with(fit=False, feedback=False)
    assert neither == pytest.approx(all_codes, rel=1e-5)
    both = error_with()
    assert both < min(error_with(fit=False), error_with(feedback=False), neither)
    assert error_with(windows=groupwise.WINDOWS) == both


def test_options_of_the_untrained_method_are_checked():
    method = METHODS.get("groupwise-untrained")
    for option, value in (("group", -1), ("group", 0), ("group", 2.5), ("group", "8"), ("windows", 0)):
        with pytest.raises(QartsrError, match=f"option {option}={value!r}: choose a whole number from 1 on"):
            method.scheme(**{option: value})
    for option, value in (("fit", "no"), ("feedback", 0)):
        with pytest.raises(QartsrError, match=f"option {option}={value!r}: choose True or False"):
            method.scheme(**{option: value})
    assert method.scheme(group=32).weight_granularity.size == 32 and method.scheme() == groupwise.SETTING
    assert METHODS.get("groupwise-per-channel").scheme().weight_granularity == PerChannel(0)
    with pytest.raises(QartsrError, match="no option 'rank'"):
        method.check_options({"rank": 1})


def test_rounding_feeds_errors_on():
    """Two equal inputs: the second code makes up for the first one's error, where nearest codes err twice."""
    quantizer = Quantizer(QuantizerConfig(4, PerChannel(0), symmetric=True), (1, 2), "w")
    quantizer.set_range(torch.tensor([[-8.0]]), torch.tensor([[7.0]]))
    square = torch.ones(2, 2, dtype=torch.float64) + 1e-3 * torch.eye(2, dtype=torch.float64)
    found = groupwise.rounded(torch.tensor([[1.4, 1.4]]), square, quantizer)
    assert float(found.sum()) == 3 and sorted(found[0].tolist()) == [1.0, 2.0]
    apart = groupwise.rounded(torch.tensor([[1.4, 1.4]]), torch.eye(2, dtype=torch.float64), quantizer)
    assert apart.tolist() == [[1.0, 1.0]], "inputs that have nothing in common: the nearest codes"


@pytest.mark.parametrize("name", KINDS)
def test_inference_form_and_stored_bits(name):
    _, net, images = converted(name, groupwise.SETTING)
    exported = inference_form(net)
    assert torch.allclose(exported(images[0]), net(images[0]), atol=1e-5)
    _, released, _ = converted(name, RELEASED_SETTING)
    assert report(net).stored_bits.tolist() == report(released).stored_bits.tolist(), "F is merged"


@pytest.mark.parametrize("bits", ["W4A4", "W2A2"])
def test_with_a_scale_per_channel_it_stores_no_more_than_the_papers_rows(bits):
    backbone = load_backbone("embedded-scaled", 1)
    names = ("groupwise-per-channel", "svdquant", "qartsr")
    ours, *theirs = (stored_bits(METHODS.get(name), backbone, bits) for name in names)
    assert 0.97 * max(theirs) < ours <= min(theirs)


def test_training_starts_where_the_untrained_one_ends():
    _, net, images = converted("conv", groupwise.SETTING)
    layer, before = net[0], net(images[0]).detach()
    assert torch.equal(layer.folded_weight(), layer.base)
    assert torch.allclose(layer.weight_quantizer(layer.base), layer.base, atol=1e-6), "on the grid"
    gradients = torch.autograd.grad(layer(images[0]).square().sum(), sum(layer.tuned_parameters().values(), []))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert [bool(gradient.abs().sum() > 0) for gradient in gradients] == [True, True, True, False, True]  # F1 is zero
    assert torch.equal(layer(images[0]).detach(), before)
    with torch.no_grad():
        layer.weight_quantizer.log_scale.fill_(0.1)
    assert torch.allclose(layer.quantized_parameters()[0], layer.base * torch.tensor(0.1).exp(), rtol=1e-5, atol=1e-6)


def test_a_layer_that_sees_nothing_but_zeros():
    net = nn.Sequential(nn.Linear(24, 20))
    quantize_(net, groupwise.SETTING.at("W2A2"))
    calibrate(net, net, [torch.zeros(2, 9, 24)])
    net[0].start()
    assert torch.equal(net(torch.zeros(1, 3, 24)), net[0].bias.expand(1, 3, 20))
