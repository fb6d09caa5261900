"""QuantVSR, LSGQuant and what they are made of, against closed forms and torch's own operators."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quant_stand_in import lq_images, tiny_backbone
from scipy.linalg import hadamard
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import Form, inference_form
from qartsr_lib.methods import METHODS, lsgquant
from qartsr_lib.methods.quantvsr import allot_ranks
from qartsr_lib.quant.apply import quantize_, report
from qartsr_lib.quant.dynamic import ChannelTokenQuantizer, RangeQuantizer, TokenQuantizer
from qartsr_lib.quant.granularity import PerChannel, PerGroup, PerHalf, PerTensor
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.rotation import block_size, random_signs, rotated
from qartsr_lib.quant.states import calibrate

ROTATED, OTHERS = ("quantvsr", "lsgquant"), ("qartsr-halves",)
LAYERS = {
    "linear": lambda: (nn.Linear(24, 20), torch.randn(2, 7, 24)),
    "rows": lambda: (nn.Linear(24, 20), torch.randn(3, 24)),
    "grid": lambda: (nn.Linear(8, 16), torch.randn(2, 8, 5, 8)),  # as many of one dimension as channels
    "conv": lambda: (nn.Conv2d(8, 20, 3, stride=2, padding=1), torch.randn(2, 8, 9, 7)),
    "odd": lambda: (nn.Conv2d(3, 6, 3, padding=1, bias=False), torch.randn(2, 3, 6, 6)),
}


def converted(method, name, bits="W4A4"):
    torch.manual_seed(0)
    layer, x = LAYERS[name]()
    net = nn.Sequential(copy.deepcopy(layer))
    quantize_(net, METHODS.get(method).scheme().at(bits))
    calibrate(net, net, [x, 0.5 * x + 1])
    net[0].start()
    return layer, net, x


@pytest.mark.parametrize("channels", [1, 3, 8, 24, 160])
def test_rotation_is_the_block_diagonal_orthogonal_matrix(channels):
    torch.manual_seed(0)
    x, size = torch.randn(2, channels, 4, 5), block_size(channels)
    signs = random_signs(x)
    blocks = [torch.from_numpy(hadamard(size)).double() / size**0.5] * (channels // size)
    wanted = torch.block_diag(*blocks) @ torch.diag(signs.double())
    assert torch.allclose(wanted @ wanted.t(), torch.eye(channels).double(), atol=1e-12) and channels % size == 0
    image = torch.einsum("ij,njhw->nihw", wanted, x.double())
    assert torch.allclose(rotated(x, signs, size, -3).double(), image, atol=1e-6)
    rows = torch.einsum("ij,ntj->nti", wanted, x.flatten(2).mT.double())
    assert torch.allclose(rotated(x.flatten(2).mT, signs, size, -1).double(), rows, atol=1e-6)


@pytest.mark.parametrize("method", ROTATED)
def test_a_linear_layer_takes_rows_of_any_number_of_dimensions(method):
    layer, net, x = converted(method, "grid", "W8A8")
    for computing in (net, inference_form(net)):
        found = computing(x)
        assert torch.equal(found, computing(x.flatten(1, 2)).view_as(found))
        assert (found - layer(x)).norm() < 0.05 * layer(x).norm()


def test_rotation_spreads_an_outlier():
    x = torch.zeros(1, 64)
    x[0, 5] = 8.0
    assert rotated(x, random_signs(x), 64, -1).abs().tolist() == [[1.0] * 64]


def test_halves_are_groups_of_half_the_channels_and_an_odd_number_is_one():
    x = torch.randn(2, 6, 4, 4)
    for found, wanted in zip(PerHalf(-3).limits(x), PerGroup(3, -3).limits(x), strict=True):
        assert torch.equal(found, wanted)
    lower, upper = PerHalf(1).limits(torch.arange(24.0).view(2, 3, 2, 2))
    assert (lower.flatten().tolist(), upper.flatten().tolist()) == ([0, 12], [11, 23])
    assert PerHalf().parameter_shape((5, 8, 3, 3)) == (5, 2, 1, 1, 1)


@pytest.mark.parametrize(("shape", "axis"), [((2, 8, 5, 4), -3), ((2, 9, 8), -1), ((3, 8), -1)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_range_quantizer_is_torchs_for_each_image_and_half(shape, axis, bits):
    torch.manual_seed(bits)
    x = 3 * torch.randn(shape) + 1
    config = QuantizerConfig(bits, PerHalf(axis), zero_point="integer")
    found = RangeQuantizer(config, shape[1:], "x")(x)
    for image, values in zip(found, x, strict=True):
        for result, half in zip(image.chunk(2, axis), values.chunk(2, axis), strict=True):
            low, high = half.min().double().clamp(max=0), half.max().double().clamp(min=0)
            step = (high - low) / (2**bits - 1)
            code = int((-low / step).round())
            wanted = torch.fake_quantize_per_tensor_affine(half, float(step.float()), code, 0, 2**bits - 1)
            # torch multiplies by the inverse of the step: a value on an edge may take the next code.
            assert ((result - wanted).abs() < 1e-5).float().mean() > 0.99
            assert (result - half).abs().max() < 1.01 * step


def test_real_zero_points_reach_both_ends_of_each_half():
    x = torch.tensor([[[1.0, 2.0, -1.0, 5.0], [4.0, 3.0, 0.0, 8.0]]])
    found = RangeQuantizer(QuantizerConfig(2, PerHalf(-1)), (4,), "x")(x)
    assert found.tolist() == [[[1.0, 2.0, -1.0, 5.0], [4.0, 3.0, -1.0, 8.0]]]  # steps 1 and 3; 0 is nearer to -1


@pytest.mark.parametrize(("shape", "axis"), [((2, 8, 5, 4), -3), ((2, 9, 8), -1)])
@pytest.mark.parametrize("bits", [2, 4])
def test_draq_in_float64(shape, axis, bits):
    torch.manual_seed(bits)
    x = torch.randn(shape)
    x.movedim(axis, -1)[..., 0] *= 50  # an outlier channel
    quantizer = ChannelTokenQuantizer(QuantizerConfig(bits, PerChannel(axis), symmetric=True), shape[1:], "x")
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for found, values in zip(quantizer(x), x.double(), strict=True):
        rows = values.movedim(axis, -1).reshape(-1, shape[axis])
        channel = rows.abs().amax(0)
        unit = rows / channel
        token = torch.maximum(unit.amin(1) / qmin, unit.amax(1) / qmax)[:, None]
        wanted = (unit / token).round().clamp(qmin, qmax) * token * channel
        result = found.movedim(axis, -1).reshape(-1, shape[axis]).double()
        assert ((result - wanted).abs() < 1e-5 * channel).double().mean() > 0.99  # an edge may take the next code
    entering = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(quantizer(entering).sum(), entering)
    assert gradient.eq(1).all(), "nothing is clipped"


@pytest.mark.parametrize("size", [0.0, 1.0], ids=["everything", "a channel and a pixel"])
def test_zeros_stay_zeros(size):
    x = size * torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    x[:, 3], x[:, :, 1, 1] = 0, 0
    halves = RangeQuantizer(QuantizerConfig(4, PerHalf(-3)), (8, 1, 1), "x")
    draq = ChannelTokenQuantizer(QuantizerConfig(4, PerChannel(-3), symmetric=True), (8, 1, 1), "x")
    assert torch.isfinite(halves(x)).all() and torch.isfinite(draq(x)).all()
    assert not draq(x)[x == 0].any()


def test_dynamic_quantizers_do_not_depend_on_the_batch():
    x = torch.randn(3, 8, 5, 5) * torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1)
    range_of = RangeQuantizer(QuantizerConfig(3, PerHalf(-3)), (8, 1, 1), "x")
    draq = ChannelTokenQuantizer(QuantizerConfig(3, PerChannel(-3), symmetric=True), (8, 1, 1), "x")
    x[0] = x[0].abs()
    token = TokenQuantizer(QuantizerConfig(3, PerGroup(4, -3), symmetric=True), (8, 1, 1), "x")  # unsigned for one
    for quantizer in (range_of, draq, token):
        assert torch.equal(quantizer(x), torch.cat([quantizer(image[None]) for image in x]))
    with pytest.raises(ValueError, match="needs PerHalf"):
        RangeQuantizer(QuantizerConfig(4, PerTensor()), (8, 1, 1), "x")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", [*ROTATED, *OTHERS])
def test_without_quantizers_it_is_the_float_layer(method, name):
    layer, net, x = converted(method, name)
    net[0].weight_quantizer = net[0].input_quantizer = net[0].bias_quantizer = None
    assert torch.allclose(net(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ROTATED)
def test_layer_by_its_formula_in_float64(method, name):
    layer, net, x = converted(method, name)
    new, weight, rows = net[0], layer.weight.double(), isinstance(layer, nn.Linear)
    half = weight.shape[1] // 2 if method == "quantvsr" and weight.shape[1] % 2 == 0 else weight.shape[1]
    size = half & -half
    assert new.rotation == size
    blocks = [torch.from_numpy(hadamard(size)).double() / size**0.5] * (weight.shape[1] // size)
    turn = torch.block_diag(*blocks) @ torch.diag(new.signs.double())
    side = (new.side_out.double() @ new.side_in.double()).view_as(weight)
    left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    assert torch.allclose(side.flatten(1), singular[0] * left[:, :1] @ right[:1], atol=1e-5), "rank 1 by SVD"
    residual = new.weight_quantizer(torch.einsum("oi...,ji->oj...", weight - side, turn).float()).double()
    spread = torch.einsum("ji,...i->...j" if rows else "ji,nihw->njhw", turn, x.double())
    entering = new.input_quantizer(spread.float()).double()
    bias = None if layer.bias is None else layer.bias.double()
    how = {} if rows else {"stride": layer.stride, "padding": layer.padding}
    operate = F.linear if rows else F.conv2d
    wanted = operate(entering, residual, bias, **how) + operate(x.double(), side, None, **how)
    distance = (net(x).double() - wanted).square().mean() / wanted.square().mean()
    assert float(distance.detach()) < 1e-4  # a code on an edge may be another one


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", [*ROTATED, *OTHERS])
def test_inference_form_computes_the_same_and_stores_no_scale_of_inputs(method, name):
    _, net, x = converted(method, name)
    exported = inference_form(net)
    assert torch.equal(exported(x), net(x)) and exported[0].input_scale is None and not exported[0].is_integer
    described = Form.from_dict({**vars(exported[0].form), "weight": _dict(exported[0].form.weight), "input": None})
    assert described.dynamic == exported[0].form.dynamic and described.rotation == exported[0].form.rotation
    row = report(net).iloc[0]
    layer, scales = net[0], net[0].weight_quantizer.scale.numel()
    own = layer.signs.numel() if method in ROTATED else layer.log_phi.numel()
    branch = layer.side_out.numel() + layer.side_in.numel()
    assert row.weight_stored_bits == 4 * row.weights + 16 * (2 * scales + branch + own)


def _dict(config):
    return {**vars(config), "granularity": vars(config.granularity)}


def test_forms_of_earlier_files_are_read():
    weight = _dict(QuantizerConfig(4, PerTensor()))
    earlier = {"weight": weight, "input": None}
    assert Form.from_dict(earlier | {"dynamic": True}).dynamic == "token"
    assert Form.from_dict(earlier | {"dynamic": False}).dynamic == ""


def test_ranks_by_complexity():
    """Five layers, 40 images: always among the most complex quarter, among the least (two), in between, mixed."""
    layers = [converted("quantvsr", "linear")[1][0] for _ in range(5)]
    for layer in layers:
        layer.weight = nn.Parameter(torch.randn(160, 160))  # rank 2 by the study's rule
    between, mixed = [3 + i / 100 for i in range(40)], [4.0] * 24 + [1.0] * 8 + [2.0] * 8
    complexities = [4.0] * 40, [1.0] * 40, [1.5] * 40, between, mixed
    for layer, seen in zip(layers, complexities, strict=True):
        layer.input_quantizer, layer.weight_quantizer, layer.complexities = None, None, seen
    allot_ranks(layers)
    # 16 + 40; at least 16; 16; 16 + 24 - 8 = 32, of which 16 are rank 2
    assert [len(layer.side_in) for layer in layers] == [7, 2, 2, 2, 4]


def test_a_layer_takes_over_another_rank_with_the_tensors():
    _, net, x = converted("quantvsr", "conv")
    _, other, _ = converted("quantvsr", "conv")
    net[0].set_side(5)
    net[0].start()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x)) and len(other[0].side_in) == 5


def test_sensitivity_is_the_variance_of_channel_means_and_decides_who_is_trained():
    layer = converted("lsgquant", "conv")[1][0]
    torch.manual_seed(1)
    images = [torch.randn(1, 8, 4, 4) for _ in range(5)]
    for image in images:
        layer.observe(image)
    layer.start()
    means = torch.cat([image.double().mean((2, 3)) for image in images])
    wanted = ((means - means.mean(0)) ** 2).sum(0) / 4
    assert float(layer.sensitivity) == pytest.approx(float(wanted.mean()), rel=1e-5)
    for value, kinds in ((0.001, []), (0.0011, ["light side", "light residual"]), (0.08, ["side", "residual"])):
        layer.sensitivity.fill_(value)
        assert list(layer.tuned_parameters()) == kinds


def test_lsgquant_without_a_sensitive_layer_says_so():
    same = [lq_images(1)[0]] * 2
    with pytest.raises(QartsrError, match="LSGQuant: no layer's input differs enough"):
        METHODS.get("lsgquant").build(tiny_backbone(), "W4A4", same, images=4)


def test_plans():
    backbone = tiny_backbone()
    plan = METHODS.get("quantvsr").phases(backbone, 9, 0)
    assert [(phase.images, phase.kinds) for phase in plan] == [(5, ("side",)), (4, ("bias",))]
    plan = METHODS.get("lsgquant").phases(backbone, 256, 0)
    assert [(phase.images, phase.kinds) for phase in plan] == [(30, None), (226, ("side", "residual"))]
    assert [phase.images for phase in METHODS.get("lsgquant").phases(backbone, 8, 0)] == [8]
    assert lsgquant.LIGHT_IMAGES == 30
    halves, own = METHODS.get("qartsr-halves"), METHODS.get("qartsr")
    assert halves.options == own.options and halves.rates == own.rates
