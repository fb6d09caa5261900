"""The layers of LSQ, EfficientDM, PassionSR and SVDQuant against closed forms."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.lsq import StepQuantizer
from qartsr_lib.methods.svdquant import RELEASED_SETTING, WITHOUT_SKIPPED, _candidates
from qartsr_lib.quant.apply import quantize_, report
from qartsr_lib.quant.dynamic import TokenQuantizer
from qartsr_lib.quant.granularity import PerChannel, PerGroup, broadcast_along
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.scheme import SHARED_SETTING, QuantScheme, matches
from qartsr_lib.quant.states import QuantState, calibrate

assert METHODS.names()  # registers the layer kinds


def layers():
    torch.manual_seed(0)
    return {"linear": nn.Linear(12, 20), "conv": nn.Conv2d(8, 20, 3, stride=2, padding=1)}


def inputs(name):
    torch.manual_seed(1)
    x = {"linear": torch.randn(2, 5, 12), "conv": torch.randn(2, 8, 9, 7)}[name]
    x.movedim(-1 if name == "linear" else 1, -1)[..., 0] *= 20  # an outlier channel
    return x + 0.5


def converted(name, kind, bits="W4A4", **options):
    reference, net, x = layers()[name], nn.Sequential(layers()[name]), inputs(name)
    scheme = replace(SHARED_SETTING, layer_kind=kind, layer_options=tuple(options.items())).at(bits)
    quantize_(net, scheme)
    calibrate(net, net, [x])
    if hasattr(net[0], "start"):
        net[0].start()
    return reference, net[0], x


def without_quantizers(layer):
    layer.weight_quantizer = layer.input_quantizer = layer.bias_quantizer = None
    return layer


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("kind", ["steps", "equivalent", "smoothed", "finetune"])
def test_without_quantizers_it_is_the_float_layer(name, kind):
    reference, layer, x = converted(name, kind)
    if kind == "equivalent":
        layer.offset_units.data.normal_()  # any offset, borders included
    assert torch.allclose(without_quantizers(layer)(x), reference(x), atol=2e-4)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_full_precision_state_is_exact(name):
    for kind in ("steps", "lora", "equivalent", "smoothed"):
        reference, layer, x = converted(name, kind)
        layer.set_state(QuantState.FULL_PRECISION)
        assert torch.equal(layer(x), reference(x)), kind


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("kind", ["steps", "lora"])
def test_learned_layers_start_as_maxmin(name, kind):
    _, layer, x = converted(name, kind)
    _, plain, _ = converted(name, "plain")
    assert torch.allclose(layer(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("kind", ["equivalent", "smoothed", "finetune", "plain"])
def test_first_batch_ranges_are_those_of_the_first_image(name, kind):
    net, x = nn.Sequential(layers()[name]), inputs(name)
    quantize_(net, replace(SHARED_SETTING, layer_kind=kind, ranges="first-batch").at("W4A4"))
    calibrate(net, net, [x, 3 * x])
    if hasattr(net[0], "start"):
        net[0].start()
    seen = net[0].scaled_input(x) if hasattr(net[0], "scaled_input") else x
    scale, offset = net[0].input_quantizer.qparams(x)
    lowest, highest = offset, offset + 15 * scale
    assert torch.allclose(torch.stack([lowest, highest]).flatten(), torch.stack([seen.min(), seen.max()]), rtol=1e-4)


def test_lsq_gradient_of_the_step():
    """LSQ Eq. 3 (2019): (round(v) - v, or the clipped code) times 1 / sqrt(numel Q_P)."""
    _, layer, _ = converted("linear", "steps")
    quantizer = layer.input_quantizer
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15.0))
    for value, expected in ((3.3, -0.3), (99.0, 15.0), (-5.0, 0.0)):
        x = torch.full((2, 12), value)
        (gradient,) = torch.autograd.grad(quantizer(x).sum(), quantizer.step_units)
        scale = 1 / (24 * 15) ** 0.5
        assert float(gradient / quantizer.unit) == pytest.approx(24 * expected * scale, rel=1e-4, abs=1e-6)


def test_a_learned_offset_is_whole_steps_where_zero_points_are_integers():
    config = QuantizerConfig(4, zero_point="integer")
    quantizer = StepQuantizer(config, (2, 12), "layer.input")
    quantizer.set_range(torch.tensor(-0.7), torch.tensor(0.8))  # 15 steps of 0.1; the code of zero is 7
    with torch.no_grad():
        quantizer.offset_units.mul_(0.93)  # 6.51 steps
        quantizer.step_units.mul_(1.07)  # 6.08 of the new ones
    step, offset = (found.item() for found in quantizer.qparams(torch.zeros(2, 12)))
    assert step == pytest.approx(0.107) and -offset / step == pytest.approx(6, abs=1e-5)
    (gradient,) = torch.autograd.grad(quantizer(torch.full((2, 12), 99.0)).sum(), quantizer.offset_units)
    assert gradient.item() > 0, "clipped values move with the offset"
    with torch.no_grad():
        quantizer.offset_units.mul_(-1)
    assert quantizer.qparams(torch.zeros(2, 12))[1].item() == 0, "there is no code below the first"


def test_lora_updates_the_quantized_weight():
    _, layer, x = converted("linear", "lora", "W2A2")
    base = layer.weight_quantizer(layer.weight).detach()
    assert torch.allclose(layer.folded_weight().detach(), base, atol=1e-6)
    layer.lora_out.data.normal_()
    update = layer.lora_unit**2 * layer.lora_out @ layer.lora_in
    expected = F.linear(
        layer.input_quantizer(x), layer.weight_quantizer(base + update), layer.bias_quantizer(layer.bias)
    )
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_efficientdms_base_follows_its_step():
    """Released: the base is (codes - z) times the trained step, so that all steps x 1.1 scale it by 1.1."""
    _, layer, _ = converted("linear", "lora", "W4A4")
    quantizer, before = layer.weight_quantizer, layer.base().detach()
    with torch.no_grad():
        quantizer.step_units.mul_(1.1)
    assert torch.allclose(layer.base(), 1.1 * before, rtol=1e-5, atol=1e-6)
    assert torch.allclose(quantizer(layer.base()), layer.base(), atol=1e-6), "and it stays on the grid"


def test_efficientdms_gradients_have_no_factor_and_offsets_of_weights_are_fixed():
    _, layer, _ = converted("linear", "lora", "W4A4")
    quantizer = layer.input_quantizer
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15.0))
    (gradient,) = torch.autograd.grad(quantizer(torch.full((2, 12), 3.3)).sum(), quantizer.step_units)
    assert float(gradient / quantizer.unit) == pytest.approx(24 * -0.3, rel=1e-4)
    tuned = layer.tuned_parameters()
    assert [parameter is layer.weight_quantizer.step_units for parameter in tuned["weight steps"]] == [True]
    fixed = layer.weight_quantizer.offset_units
    assert not any(parameter is fixed for parameters in tuned.values() for parameter in parameters)
    assert any(parameter is quantizer.offset_units for parameter in tuned["activation steps"])


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_svdquant_beats_plain_quantization_where_channels_differ(name):
    reference, smoothed, x = converted(name, "smoothed", "W3A3")
    _, plain, _ = converted(name, "plain", "W3A3")
    errors = [float(F.mse_loss(layer(x), reference(x)).detach()) for layer in (smoothed, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_svdquant_finds_the_best_candidate_of_its_grid():
    reference, layer, x = converted("linear", "smoothed", "W4A4")
    chosen = float(F.mse_loss(layer(x), reference(x)).detach())
    layer.observe(x)
    candidates = list(_candidates(*(values.log() for values in layer.largest())))
    assert len(candidates) == 39
    errors = []
    with torch.no_grad():
        for candidate in candidates:
            layer.set_phi(candidate)
            errors.append(float(F.mse_loss(layer(x), reference(x))))
    assert chosen <= min(errors) + 1e-7


def test_schemes_of_the_kinds_are_plain_data():
    scheme = replace(QuantScheme(), layer_kind="steps", layer_options=(("train_weights", True),)).at("W4A4")
    assert QuantScheme.from_dict(scheme.to_dict()) == scheme


@pytest.mark.parametrize("name, product", [("linear", 20), ("conv", 20 * 9)])
def test_passionsr_stores_its_offset_and_what_it_becomes_behind_the_layer(name, product):
    reference, layer, _ = converted(name, "equivalent")
    channels = reference.weight.shape[1]
    assert layer.side_branch_bits == 16 * (2 * channels + product)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_efficientdms_inference_form(name):
    _, layer, x = converted(name, "lora")
    torch.nn.init.normal_(layer.lora_out, std=0.3)
    exported = inference_form(nn.Sequential(layer))
    assert torch.equal(exported(x), layer(x).detach()) and exported[0].codes.dtype == torch.uint8


@pytest.mark.parametrize("method", ["passionsr", "svdquant", "svdquant-released", "qartsr", "groupwise"])
def test_a_channel_that_was_zero_in_calibration_may_live_in_another_image(method):
    torch.manual_seed(0)
    x, net = torch.randn(2, 40, 128), nn.Sequential(nn.Linear(128, 20))
    float_layer, alive = copy.deepcopy(net), x.clone()
    x[..., 5] = 0
    quantize_(net, METHODS.get(method).scheme().at("W8A8"))
    calibrate(net, net, [x])
    net[0].start()
    with torch.no_grad():
        error = F.mse_loss(net(alive), float_layer(alive)) / float_layer(alive).var()
    assert float(net[0].log_phi.detach()[5]) == 0 and float(error) < 1e-2


def test_channels_of_an_input_that_never_changes_stay_as_they_are():
    """As those of the timestep's embedding."""
    net = nn.Sequential(nn.Linear(12, 20))
    quantize_(net, replace(SHARED_SETTING, layer_kind="finetune").at("W4A4"))
    calibrate(net, net, [torch.cat([torch.zeros(1, 6), torch.ones(1, 6)], 1)] * 2)
    net[0].start()
    assert (net[0].log_phi[:6] < -3).all() and (net[0].log_phi[6:] > -1).all()


def test_a_range_per_channel_is_refused_where_channels_have_factors():
    scheme = replace(SHARED_SETTING, layer_kind="finetune", activation_granularity=PerChannel()).at("W4A4")
    with pytest.raises(QartsrError, match="0: its channels have factors, and one range; choose PerTensor"):
        quantize_(nn.Sequential(nn.Linear(12, 20)), scheme)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_dynamic_quantizer_against_a_loop_over_tokens(name):
    x = torch.randn(2, 5, 128) if name == "linear" else torch.randn(2, 128, 3, 4)
    axis = -1 if name == "linear" else -3
    quantizer = TokenQuantizer(QuantizerConfig(4, PerGroup(64, axis), symmetric=True), x.shape[1:], "x")
    found = quantizer(x).movedim(axis, -1).reshape(-1, 64)
    for group, values in zip(found, x.movedim(axis, -1).reshape(-1, 64), strict=True):
        scale = max(float(values.min()) / -8, float(values.max()) / 7)
        assert torch.allclose(group, (values / scale).round().clamp(-8, 7) * scale, atol=1e-5)
    positive = quantizer(x.abs()).movedim(axis, -1).reshape(-1, 64)
    assert max(len(group.unique()) for group in positive) > 9  # sixteen codes above zero, not eight
    assert quantizer(torch.zeros_like(x)).abs().max() == 0 == quantizer.stored_parameter_bits
    half = x.half()
    half.movedim(axis, -1)[0, 0] = 0
    assert quantizer(half).isfinite().all(), "a token of zeros has no scale"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_no_value_of_a_token_is_beyond_its_range(bits, signed):
    quantizer = TokenQuantizer(QuantizerConfig(bits, PerGroup(64, -3), symmetric=True), (64, 20, 20), "x")
    x = torch.randn(1, 64, 20, 20, generator=torch.Generator().manual_seed(0))
    x = (x if signed else x.abs()).requires_grad_()
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_svdquant_as_released_has_groups_and_stores_their_scales():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(128, 10)), torch.randn(4, 128)
    quantize_(net, RELEASED_SETTING.at("W4A4"))
    calibrate(net, net, [x])
    net[0].start()
    assert net[0].weight_quantizer.scale.numel() == 10 * 2 and net[0].bias_quantizer is None
    assert report(net).weight_stored_bits[0] == 1280 * 4 + 16 * 20 + 16 * (128 + 10 + 128)
    assert float((net(x) - F.linear(x, net[0].weight, net[0].bias)).square().mean()) < 0.01


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_svdquant_as_released_against_deepcompressors_rules(name):
    """Computed here in float64: groups (1, 64, 1, 1), codes -7 .. 7, the range by the largest magnitude alone."""
    torch.manual_seed(1)
    layer = nn.Linear(128, 6) if name == "linear" else nn.Conv2d(128, 6, 3, padding=1)
    net = nn.Sequential(layer)
    quantize_(net, RELEASED_SETTING.at("W4A4"))
    weight = layer.weight.detach().double().reshape(6, 2, 64, -1)
    scale = weight.abs().amax(2, keepdim=True) / 7
    wanted = ((weight / scale).round().clamp(-7, 7) * scale).reshape(layer.weight.shape)
    assert torch.allclose(net[0].weight_quantizer(layer.weight).double(), wanted, atol=1e-6)
    assert net[0].weight_quantizer.scale.numel() == 6 * 2 * layer.weight[0, 0].numel()
    x = torch.randn(2, 128) if name == "linear" else torch.randn(2, 128, 1, 1)
    rows = x.double().reshape(-1, 64)
    step = rows.abs().amax(1, keepdim=True) / 7
    assert torch.allclose(net[0].input_quantizer(x).double().reshape(-1, 64), (rows / step).round() * step, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize(("bound", "lowest"), [(F.silu, -0.2785), (F.gelu, -0.17), (F.relu, 0.0), (torch.sin, -1.0)])
def test_svdquants_inputs_behind_an_activation_are_shifted_until_unsigned(name, bound, lowest):
    torch.manual_seed(2)
    layer = nn.Linear(64, 6) if name == "linear" else nn.Conv2d(64, 6, 3, padding=1)
    x = bound(3 * (torch.randn(64, 64) if name == "linear" else torch.randn(2, 64, 6, 6)))
    net = nn.Sequential(copy.deepcopy(layer))
    quantize_(net, RELEASED_SETTING.at("W4A4"))
    calibrate(net, net, [x])
    net[0].start()
    shift = -float(net[0].offset[0])
    assert shift == (0 if lowest in (0, -1) else pytest.approx(-lowest, abs=0.002))
    assert (net[0].inference_parts().offset is None) == (shift == 0)
    levels = 15 if lowest > -1 else 7
    scaled = net[0].scaled_input(x)
    axis = -1 if name == "linear" else 1
    step = (scaled.amax(axis) if levels == 15 else scaled.abs().amax(axis)) / levels
    error = (net[0].quantized_input(scaled) - scaled).abs().amax(axis)
    assert (error <= 0.51 * step).all()
    wanted = F.linear if name == "linear" else partial(F.conv2d, padding=1)
    weight = net[0].shifted_weight()
    quantized = net[0].quantized_input(scaled) * broadcast_along(net[0].log_phi.exp(), axis, x.ndim) - shift
    branch = net[0].side_out @ net[0].side_in
    exact = wanted(quantized, weight - (branch.view_as(weight) / net[0].times_phi(torch.ones_like(weight))), layer.bias)
    exact = exact + wanted(x, (branch.view_as(weight) / net[0].times_phi(torch.ones_like(weight))))
    assert torch.allclose(net[0](x), exact, atol=2e-4)
    exported = inference_form(net)
    assert torch.allclose(exported(x), net(x), atol=1e-5)


def test_svdquants_exceptions_stay_in_full_precision():
    names = ["unet.conv_in", "unet.a.conv_shortcut", "unet.b.samplers.0.conv", "vae.c.proj_in", "unet.d.time_emb_proj"]
    names += ["unet.time_embedding.linear_1"]
    assert not any(matches(name, WITHOUT_SKIPPED) for name in names)
    assert all(matches(name, WITHOUT_SKIPPED) for name in ("unet.a.conv1", "vae.b.conv_out", "unet.c.to_q"))
