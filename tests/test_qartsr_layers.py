"""Eq. 9 against its formula, closed forms, and what may and may not change in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.methods import METHODS, low_rank
from qartsr_lib.quant import loops
from qartsr_lib.quant.apply import quantize_, report
from qartsr_lib.quant.granularity import PerChannel, PerTensor
from qartsr_lib.quant.learned import LearnedQuantizer, RoundFirstQuantizer
from qartsr_lib.quant.primitives import affine_qparams
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.scheme import QuantScheme
from qartsr_lib.quant.states import QuantState, calibrate
from tests.benchmarks.gpu.gpu_contestants import quick_svd

assert METHODS.names()  # registers the layer kinds


def float_layers():
    torch.manual_seed(0)
    return {
        "linear": nn.Linear(12, 20),
        "conv": nn.Conv2d(8, 20, 3, stride=2, padding=1),
        "no bias": nn.Linear(6, 4, False),
    }


def inputs(name):
    torch.manual_seed(1)
    return {"linear": torch.randn(2, 5, 12), "conv": torch.randn(2, 8, 9, 7), "no bias": torch.randn(3, 6)}[name]


def converted(name, bits="W4A4", **options):
    """(float layer, Eq. 9 layer, input): calibrated on the input, quantized state."""
    layer, x = float_layers()[name], inputs(name)
    net = nn.Sequential(layer)
    reference = float_layers()[name]
    scheme = QuantScheme(layer_kind="finetune", layer_options=tuple(options.items())).at(bits)
    quantize_(net, scheme)
    calibrate(net, net, [x])
    net[0].start()
    net[0].set_state(QuantState.QUANTIZED)
    return reference, net[0], x


def jiggle(layer, names):
    torch.manual_seed(2)
    with torch.no_grad():
        for name in names:
            getattr(layer, name).add_(0.3 * torch.randn_like(getattr(layer, name)))


NAMES = ["linear", "conv", "no bias"]


@pytest.mark.parametrize("name", NAMES)
def test_without_quantizers_it_is_the_float_layer(name):
    reference, layer, x = converted(name)
    layer.weight_quantizer = layer.input_quantizer = layer.bias_quantizer = None
    jiggle(layer, ["side_out", "side_in", "log_phi"])
    assert torch.allclose(layer(x), reference(x), atol=1e-5)
    jiggle(layer, ["merged_out"])
    assert not torch.allclose(layer(x), reference(x), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_equation_9_term_by_term(name):
    _, layer, x = converted(name)
    jiggle(layer, ["side_out", "side_in", "log_phi", "merged_out", "merged_in"])
    weight, low_rank = layer.weight.flatten(1), layer.side_out @ layer.side_in
    is_conv = x.ndim == 4 and isinstance(layer, nn.Conv2d)

    def product(matrix, tensor):
        if is_conv:
            return F.conv2d(tensor, matrix.view_as(layer.weight), stride=2, padding=1)
        return tensor @ matrix.T

    phi = layer.log_phi.exp()
    per_column = phi.repeat_interleave(9 if is_conv else 1)
    folded = per_column * (weight - low_rank + layer.merged_out @ layer.merged_in)
    quantized = _fake(folded, layer.weight_quantizer.lower.flatten(1), layer.weight_quantizer.upper.flatten(1), 4)
    scaled = x / (phi.view(-1, 1, 1) if is_conv else phi)
    scaled = _fake(scaled, layer.input_quantizer.lower, layer.input_quantizer.upper, 4)
    expected = product(low_rank, x) + product(quantized, scaled)
    if layer.bias is not None:
        bias = _fake(layer.bias, layer.bias_quantizer.lower, layer.bias_quantizer.upper, 8)
        expected = expected + (bias.view(-1, 1, 1) if is_conv else bias)
    assert torch.allclose(layer(x), expected, atol=2e-5)


def _fake(x, lower, upper, bits):
    step = (upper - lower) / (2**bits - 1)
    return lower + step * torch.round((x - lower) / step).clamp(0, 2**bits - 1)


def test_full_rank_side_branch_leaves_nothing_to_quantize():
    reference, layer, x = converted("linear", "W2A2", side_rank=12)
    layer.bias_quantizer = None
    assert float(layer.folded_weight().detach().abs().max()) < 1e-5
    assert torch.allclose(layer(x), reference(x), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_tuned_parameters_change(name):
    reference, layer, x = converted(name, "W2A2")
    start = {key: value.clone() for key, value in layer.state_dict().items()}
    target = reference(x).detach()
    tuned = [parameter for kind in layer.tuned_parameters().values() for parameter in kind]
    optimizer = torch.optim.Adam(tuned, lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(layer.weight, reference.weight)
    trainable = {key for key, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key, p in layer.named_parameters() if any(p is one for one in tuned)}
    unchanged = {key for key, value in layer.state_dict().items() if torch.equal(value, start[key])}
    assert unchanged <= {"weight", "bias"} | {key for key in start if key.endswith((".scale", ".zero_point", ".unit"))}


def test_bounds_start_exactly_at_the_range():
    quantizer = LearnedQuantizer(QuantizerConfig(4), (1, 3), "test")
    lower, upper = torch.tensor(-0.7371), torch.tensor(12345.678)
    shape = quantizer.scale.shape
    quantizer.set_range(lower.reshape(shape), upper.reshape(shape))
    assert torch.equal(quantizer.lower.reshape(()), lower) and torch.equal(quantizer.upper.reshape(()), upper)
    x = torch.linspace(-2, 13000, 97)[:, None]
    plain = Quantizer(QuantizerConfig(4), (1, 3), "test")
    plain.set_range(lower.reshape(shape), upper.reshape(shape))
    assert torch.equal(quantizer(x), plain(x))
    assert 0.5 < float((quantizer.upper_units - quantizer.lower_units).detach()) < 2


def test_gradients_of_the_bounds():
    """Closed form: a clipped value follows its bound; inside, (round(v) - v) / (2^b - 1) of the upper one."""
    _, layer, _ = converted("linear")
    quantizer = layer.input_quantizer
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    for value, lower, upper in ((5.0, 0.0, 1.0), (-3.0, 1.0, 0.0), (0.33, None, None)):
        bounds = [quantizer.lower_units, quantizer.upper_units]
        gradients = torch.autograd.grad(quantizer(torch.tensor([[value]])).sum(), bounds)
        gradients = [gradient / quantizer.unit for gradient in gradients]
        if lower is None:
            v = (value + 1.0) / 0.2
            upper = (round(v) - v) / 15
            lower = -upper
        assert [float(g) for g in gradients] == pytest.approx([lower, upper], abs=1e-5)


@pytest.mark.parametrize("value, inside", [(2.09, True), (2.11, False), (-1.09, True), (-1.11, False)])
def test_bounds_that_round_first_reach_half_a_step_further(value, inside):
    """Range -1 .. 2 in 15 steps of 0.2: up to 0.1 beyond it (round(v) - v) / 15 goes to u and its opposite to l."""
    quantizer = RoundFirstQuantizer(QuantizerConfig(4), (1, 3), "test")
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    x, v = torch.tensor([[value]], requires_grad=True), (value + 1) / 0.2
    gradients = torch.autograd.grad(quantizer(x).sum(), [x, quantizer.lower_units, quantizer.upper_units])
    shared = (round(v) - v) / 15
    expected = [1, -shared, shared] if inside else [0, float(value < 0), float(value > 0)]
    units = (1, quantizer.unit, quantizer.unit)
    found = [float(gradient / unit) for gradient, unit in zip(gradients, units, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
@pytest.mark.parametrize("closed", [False, True])
def test_gradients_are_those_of_the_formulas_differentiated_step_by_step(granularity, closed):
    quantizer = LearnedQuantizer(QuantizerConfig(3, granularity), (4, 50), "test")
    torch.manual_seed(0)
    x, weights = torch.randn(4, 50, requires_grad=True), torch.randn(4, 50)
    limits = granularity.limits(x.detach())
    lower, upper = limits[0] * 0.5, limits[1] * 0.5  # a good part is clipped
    quantizer.set_range(lower, upper)
    if closed:  # by training: the floor of the scale has no gradient
        quantizer.upper_units.data.view(-1)[0] = quantizer.lower_units.data.view(-1)[0]
    bounds = [quantizer.lower_units, quantizer.upper_units]
    found = torch.autograd.grad((quantizer(x) * weights).sum(), [x, *bounds])
    scale, zero_point = affine_qparams(quantizer.lower, quantizer.upper, 3)
    levels = ((x - zero_point) / scale).clamp(0, 7)
    levels = levels + (levels.round() - levels).detach()
    expected = torch.autograd.grad(((levels * scale + zero_point) * weights).sum(), [x, *bounds])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_gradients_of_phi_are_those_of_a_division(kind):
    _, layer, x = converted(kind)
    x = x.clone().requires_grad_(True)
    weights = torch.randn_like(x)
    found = torch.autograd.grad((layer.scaled_input(x) * weights).sum(), [x, layer.log_phi])
    shape = [1] * x.ndim
    shape[layer.input_axis] = -1
    quotient = x / layer.log_phi.exp().view(shape)
    expected = torch.autograd.grad((quotient * weights).sum(), [x, layer.log_phi])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_phi_starts_as_passionsr_sets_it():
    _, layer, x = converted("conv")
    expected = (x.abs().amax((0, 2, 3)) / layer.weight.abs().amax((0, 2, 3))) ** 0.3
    assert torch.allclose(layer.log_phi.exp(), expected, rtol=1e-5)
    low = (x.amin((0, 2, 3)) / expected).min()
    assert float(layer.input_quantizer.lower.detach()) == pytest.approx(float(low), rel=1e-5)


def test_start_without_calibration():
    net = nn.Sequential(nn.Linear(4, 4))
    quantize_(net, QuantScheme(layer_kind="finetune").at("W4A4"))
    with pytest.raises(QartsrError, match="nothing observed"):
        net[0].start()


def test_side_branches_are_counted():
    _, layer, _ = converted("linear")  # rank 1: L1 20, L2 12, phi 12
    assert layer.side_branch_bits == 16 * (20 + 12 + 12)
    assert report(layer).weight_stored_bits[0] >= 20 * 12 * 4 + layer.side_branch_bits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", ["W4A4", "W2A2"])
def test_the_inference_form_equals_the_layer(name, bits, monkeypatch):
    """Bit by bit; compiled loops add up L1 L2 x in another order while training."""
    _, layer, x = converted(name, bits)
    jiggle(layer, ["side_out", "side_in", "log_phi", "merged_out"])
    exported = inference_form(nn.Sequential(layer))
    with torch.no_grad():
        assert torch.equal(exported(x), layer(x))
        wanted = exported(x)
    assert torch.allclose(layer(x).detach(), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    monkeypatch.setattr(loops, "library", lambda: None)
    assert torch.equal(layer(x).detach(), wanted)  # with gradients on, as in training
    assert not any("merged" in key or key.endswith("weight") for key in exported.state_dict())


def test_what_the_inference_form_keeps_is_what_is_counted():
    _, layer, _ = converted("conv", "W3A3")
    (exported,) = inference_form(nn.Sequential(layer))
    width, sixteen = 3, 16
    assert int(exported.codes.max()) == 2**width - 1
    floats = [exported.scale, exported.zero_point, exported.phi, exported.side_out, exported.side_in]
    floats += [exported.input_scale, exported.input_zero_point]
    stored = exported.codes.numel() * width + sixteen * sum(part.numel() for part in floats)
    assert stored == report(layer).weight_stored_bits[0]


def test_published_ranks_stop_at_full_rank():
    _, layer, _ = converted("conv", side_rank=4, merged_rank=32)
    assert layer.side_in.shape == (4, 72) and layer.merged_in.shape == (20, 72)


def test_a_quick_svd_starts_nearly_as_the_exact_one(monkeypatch):
    products = []
    for svd in (low_rank.truncated_svd, quick_svd):
        monkeypatch.setattr(low_rank, "truncated_svd", svd)
        torch.manual_seed(3)  # of the projection
        _, layer, x = converted("conv", side_rank=4)
        products.append((layer.side_out @ layer.side_in).detach())
        assert layer.side_out.shape == (20, 4) and layer.side_in.shape == (4, 72)
    exact, quick = products
    weight = layer.weight.flatten(1)
    assert float((weight - quick).norm()) < 1.05 * float((weight - exact).norm())
    assert not torch.equal(exact, quick)
