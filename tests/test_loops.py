"""The compiled loops of training against PyTorch: same bits element by element, sums to rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.methods import METHODS
from qartsr_lib.quant import few_passes, loops, primitives
from qartsr_lib.quant.granularity import PerChannel, PerGroup, PerTensor
from qartsr_lib.quant.layers import LAYER_KINDS, LayerConfig
from qartsr_lib.quant.learned import LearnedQuantizer
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.states import QuantState

assert METHODS.names()  # registers the layer kinds
pytestmark = pytest.mark.skipif(loops.library() is None, reason="no C++ compiler here")


@pytest.fixture
def without_loops(monkeypatch):
    """Call it to do what follows by PyTorch alone."""
    return lambda: monkeypatch.setattr(loops, "library", lambda: None)


def plain_fake_quantize(x, scale, zero_point, qmin, qmax):
    steps = x / scale if zero_point is None else (x - zero_point) / scale
    codes = steps.clamp(qmin, qmax).round()
    return codes * scale if zero_point is None else codes * scale + zero_point


def layouts():
    """(x, scale shape) of everything that is quantized in training."""
    torch.manual_seed(0)
    wide = torch.randn(2, 20, 33, 47) * 2
    weight = torch.randn(24, 20, 3, 3)
    last = {"memory_format": torch.channels_last}
    yield pytest.param(wide, (), id="per tensor")
    yield pytest.param(wide.contiguous(**last), (), id="channels_last")
    yield pytest.param(wide.permute(0, 2, 3, 1), (), id="permuted")
    yield pytest.param(weight, (24, 1, 1, 1), id="per channel")
    yield pytest.param(weight.contiguous(**last), (24, 1, 1, 1), id="channels_last per channel")
    yield pytest.param(PerGroup(5).view(weight), (24, 4, 1, 1, 1), id="groups")
    yield pytest.param(PerGroup(64).view(weight.contiguous(**last)), (24, 1, 1, 1, 1), id="one group")
    yield pytest.param(torch.randn(17), (1,), id="bias")


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("x, shape", layouts())
def test_fake_quantize_has_the_bits_of_pytorch(x, shape, offset):
    scale = torch.rand(shape) * 0.2 + 0.1
    zero_point = torch.randn(shape) - 1 if offset else None
    code_range = (0, 15) if offset else (-8, 7)
    x = x.clone(memory_format=torch.preserve_format)
    x[(0,) * x.ndim], x[(-1,) * x.ndim] = torch.nan, torch.inf
    found = loops.fake_quantize(x, scale, zero_point, *code_range)
    assert torch.equal(found.nan_to_num(9), plain_fake_quantize(x, scale, zero_point, *code_range).nan_to_num(9))
    assert found.stride() == x.stride()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("offset, reach", [(True, 0.0), (False, 0.0), (True, 0.5)])
@pytest.mark.parametrize("x, shape", layouts())
def test_gradients(x, shape, offset, reach, count, threads):
    """grad_x bit by bit; sums against float64, as exact as float32 holds them; the same for any number of threads."""
    scale = torch.rand(shape) * 0.2 + 0.1
    zero_point = torch.randn(shape) - 1 if offset else None
    gradient = torch.randn(x.shape)
    with threads(count):
        found = loops.fake_quantize_gradients(gradient, x, scale, zero_point, 0, 15, reach)
    steps = x / scale if zero_point is None else (x - zero_point) / scale
    codes = steps.clamp(0, 15)
    inside = (steps - codes).abs() <= reach
    assert torch.equal(found[0], gradient * inside)
    terms = (codes.round() - steps * inside).double() * gradient.double()
    assert_sums(found[1], terms)
    if zero_point is None:
        assert found[2] is None
    else:
        assert_sums(found[2], gradient.double() * ~inside)
    with threads(1):
        alone = loops.fake_quantize_gradients(gradient, x, scale, zero_point, 0, 15, reach)
    assert all(torch.equal(*pair) for pair in zip(found[:2], alone[:2], strict=True))


def assert_sums(found, terms):
    wanted, size = terms.sum_to_size(found.shape), terms.abs().sum_to_size(found.shape)
    assert bool(((found - wanted).abs() <= 3e-6 * size + 1e-12).all())


def test_other_tensors_are_left_to_pytorch():
    scale = torch.tensor(0.1)
    x = torch.randn(4, 6)
    assert loops.fake_quantize(x.double(), scale.double(), None, 0, 3) is None
    assert loops.fake_quantize(x[:, ::2], scale, None, 0, 3) is None
    assert loops.fake_quantize(x, torch.rand(6), None, 0, 3) is None  # along the last axis
    assert loops.fake_quantize(x.t(), torch.rand(6, 1), None, 0, 3) is None  # strides run the other way
    assert loops.fake_quantize(x[:0], scale, None, 0, 3) is None
    assert loops.fake_quantize_gradients(x.double(), x, scale, None, 0, 3) is None


def convolution(c_in, c_out, kernel, **options):
    return nn.Conv2d(c_in, c_out, kernel, **options), torch.randn(2, c_in, 21, 14)


LAYERS = {
    "3x3": lambda: convolution(32, 80, 3, padding=1),
    "1x1": lambda: convolution(20, 96, 1),
    "few channels": lambda: convolution(3, 170, 3, padding=1),
    "stride": lambda: convolution(16, 80, 3, padding=1, stride=2),
    "no padding, stride": lambda: convolution(16, 80, 3, stride=2),
    "oblong": lambda: convolution(16, 80, (3, 5), padding=(2, 0), stride=(1, 3)),
    "wide border": lambda: (nn.Conv2d(16, 80, 5, padding=2), torch.randn(1, 16, 2, 3)),
    "linear": lambda: (nn.Linear(40, 240), torch.randn(3, 11, 40)),
    "linear of four axes": lambda: (nn.Linear(40, 80), torch.randn(2, 3, 5, 40)),
    "expanded": lambda: (nn.Linear(16, 80), torch.randn(1, 7, 16).expand(3, 7, 16)),
}


def trained_layer(kind, layer, x, axis=PerChannel(0)):  # noqa: B008 - frozen
    """A layer of `kind` in state QUANTIZED, its parameters moved from their start."""
    config = LayerConfig(QuantizerConfig(4, granularity=axis), QuantizerConfig(4), QuantizerConfig(8))
    new = LAYER_KINDS.get(kind)[type(layer)].from_float(layer, config, "layer").to(memory_format=torch.channels_last)
    new.set_state(QuantState.CALIBRATING)
    new(x)
    new.start()
    new.set_state(QuantState.QUANTIZED)
    with torch.no_grad():
        for tuned in new.tuned_parameters().values():
            for parameter in tuned:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return new


def outputs_and_gradients(layer, x):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    parameters = [parameter for tuned in layer.tuned_parameters().values() for parameter in tuned]
    return [y.detach(), *torch.autograd.grad((y * torch.randn(y.shape)).sum(), [x, *parameters])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["finetune", "equivalent"])
@pytest.mark.parametrize("shape", LAYERS)
def test_layers_in_few_passes(shape, kind, layout, without_loops):
    """Output and all gradients as by PyTorch's operations."""
    torch.manual_seed(0)
    layer, x = LAYERS[shape]()
    if x.ndim == 4 and isinstance(layer, nn.Conv2d):
        x = x.contiguous(memory_format=layout)
    layer = trained_layer(kind, layer, x)
    assert few_passes.fits(layer, x)
    found = outputs_and_gradients(layer, x)
    without_loops()
    assert not few_passes.fits(layer, x)
    for ours, wanted in zip(found, outputs_and_gradients(layer, x), strict=True):
        assert ours.shape == wanted.shape
        assert float((ours - wanted).norm()) <= 2e-5 * float(wanted.norm()) + 2e-5  # sums that cancel


@pytest.mark.parametrize("axis", [PerChannel(0), PerTensor()])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["finetune", "equivalent"])
def test_folded_weights_against_float64(kind, layout, axis):
    """phi (W + F1 F2 - L1 L2) quantized, and its gradients, by the formula in float64; several blocks a row."""
    torch.manual_seed(3)
    layer = trained_layer(kind, *convolution(300, 20, 3, padding=1), axis)
    layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
    quantizer, factors = layer.weight_quantizer, layer.low_rank_factors()
    assert few_passes._held(quantizer, layer.weight) and len(factors) == 4 * (kind == "finetune")
    tuned = [layer.log_phi, quantizer.lower_units, quantizer.upper_units, *factors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tuned]
    phi, (lower, upper), others = exact[0].exp().view(-1, 1, 1), (t * quantizer.unit for t in exact[1:3]), exact[3:]
    change = others[0] @ others[1] - others[2] @ others[3] if others else torch.zeros(20, 2700)
    scale = (upper - lower) / 15
    steps = (phi * (layer.weight + change.view(20, 300, 3, 3)) - lower) / scale
    reach, edge = quantizer.reach, (steps - steps.floor() - 0.5).abs().min()
    assert edge > 1e-7  # no code is a matter of rounding
    inside = (steps >= -reach) & (steps <= 15 + reach)
    codes = steps + (steps.detach().clamp(0, 15).round() - steps).detach()
    wanted = scale * torch.where(inside, codes, steps.detach().clamp(0, 15).round()) + lower
    found, _ = few_passes.parameters(layer)
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-6)
    given = torch.randn(found.shape)
    ours = torch.autograd.grad((found * given).sum(), tuned)
    for mine, other in zip(ours, torch.autograd.grad((wanted * given).sum(), exact), strict=True):
        assert float((mine - other).norm()) <= 1e-4 * float(other.norm())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_side_branch_against_float64(rank):
    """y + L1 L2 x and its gradients by torch's convolutions in float64."""
    torch.manual_seed(rank)
    layer, x = convolution(20, 80, 3, padding=1, stride=2)
    layer = trained_layer("finetune", layer, x)
    side_in, side_out = torch.randn(rank, 20 * 9, requires_grad=True), torch.randn(80, rank, requires_grad=True)
    x.requires_grad_()
    quantized, narrow = few_passes.enter(layer, x, side_in)
    y = torch.randn(2, 80, 11, 7)
    found = few_passes.add_side(layer, y.clone(), narrow, side_out)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, side_in, side_out)]
    branch = F.conv2d(exact[0], exact[1].view(rank, 20, 3, 3), padding=1, stride=2)
    wanted = y.double() + F.conv2d(branch, exact[2][:, :, None, None])
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-4)
    weights = torch.randn(wanted.shape)
    ours = torch.autograd.grad((found * weights).sum(), [x, side_in, side_out])
    for mine, other in zip(ours, torch.autograd.grad((wanted * weights).sum(), exact), strict=True):
        assert float((mine - other).norm()) <= 1e-5 * float(other.norm())


def test_quantized_input_has_the_bits_of_pytorch(without_loops):
    torch.manual_seed(0)
    layer, x = convolution(20, 80, 3, padding=1)
    layer = trained_layer("finetune", layer, x)
    found, _ = few_passes.enter(layer, x, None)
    without_loops()
    assert torch.equal(found, layer.input_quantizer(layer.scaled_input(x)))


def test_threads_change_nothing(threads):
    torch.manual_seed(0)
    layer, x = convolution(32, 80, 3, padding=1)
    x = F.interpolate(x, scale_factor=4).contiguous(memory_format=torch.channels_last)
    layer, found = trained_layer("finetune", layer, x), []
    gradient = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
    for count in (1, 2, 3):
        with threads(count):
            given, side_in = x.clone().requires_grad_(), layer.side_in.detach().clone().requires_grad_()
            quantized, narrow = few_passes.enter(layer, given, side_in)
            found.append(torch.autograd.grad((quantized * gradient).sum() + narrow.sum(), [given, side_in]))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("levels_apart", [1.0, 0.0])
def test_learned_bounds_by_loops_and_by_pytorch(levels_apart, without_loops):
    """Also where the floor holds the scale."""
    torch.manual_seed(0)
    quantizer = LearnedQuantizer(QuantizerConfig(3, granularity=PerChannel(0)), (5, 7), "test")
    lower = torch.randn(5, 1)
    quantizer.set_range(lower, lower + levels_apart * torch.rand(5, 1))
    x, gradient, found = torch.randn(5, 7), torch.randn(5, 7), []
    for _ in range(2):
        y = quantizer(x)
        bounds = [quantizer.lower_units, quantizer.upper_units]
        found.append([y.detach(), *torch.autograd.grad((y * gradient).sum(), bounds)])
        without_loops()
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_without_gradients_the_bits_are_the_same(without_loops):
    """Evaluation goes through the same formula, by loops or not."""
    torch.manual_seed(0)
    x, scale, zero_point = torch.randn(3, 8, 9), torch.tensor(0.13), torch.tensor(-0.9)
    by_loops = primitives.fake_quantize(x, scale, zero_point, 0, 15)
    without_loops()
    assert torch.equal(by_loops, primitives.fake_quantize(x, scale, zero_point, 0, 15))


def test_under_autocast():
    """A product in bfloat16 is no place to add float32 numbers to."""
    torch.manual_seed(0)
    layer, x = convolution(32, 80, 3, padding=1)
    layer = trained_layer("finetune", layer, x)
    wanted = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).norm()) <= 0.02 * float(wanted.norm())
