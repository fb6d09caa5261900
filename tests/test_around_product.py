"""The loops around integer products against PyTorch, and fused blocks against diffusers' own."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from qartsr_lib.deploy import around_product, loops
from qartsr_lib.deploy.around_product import (
    Finish,
    InputQuantizer,
    Norm,
    encode,
    finish_,
    moments_of,
    plain_encode,
    plain_finish_,
)
from qartsr_lib.deploy.blocks import Enlarging, NormedLayer, ResidualBlock, fuse_
from qartsr_lib.deploy.geometry import Geometry, side_products
from qartsr_lib.deploy.int8 import int8_form
from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import calibrate

needs_loops = pytest.mark.skipif(loops.library() is None, reason="no C++ compiler here")
CHANNELS = (3, 7, 16, 20, 40, 128)


def quantizer(channels, rows=9, sees_scaled=False):
    rows = torch.randn(rows, channels).bfloat16() if rows else None
    return InputQuantizer(
        torch.randn(channels), torch.rand(channels) + 0.5, -1.3, 0.17, 15.0, rows, sees_scaled=sees_scaled
    )


@needs_loops
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows, sees_scaled", [(0, False), (9, False), (19, True)])
def test_codes_have_the_bits_of_pytorch(channels, rows, sees_scaled):
    torch.manual_seed(channels)
    x = torch.randn(2, 37, 11, channels)
    how = quantizer(channels, rows, sees_scaled)
    for found, wanted in zip(encode(x, how), plain_encode(x, how), strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)


@needs_loops
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", [1, 4, 9, 19])
def test_side_products_add_the_channels_in_their_order(channels, rows):
    """Products of bfloat16 are exact in float32, so that this order gives the bits on every processor."""
    torch.manual_seed(channels)
    half, weights = torch.randn(3, 7, 5, channels).bfloat16(), torch.randn(rows, channels).bfloat16()
    total = torch.zeros(3, 7, 5, rows)
    for channel in range(channels):
        total = total + half[..., channel, None].float() * weights[:, channel].float()
    planes = side_products(half, weights, Geometry())
    assert torch.equal(planes[0], total.bfloat16().permute(3, 0, 1, 2))


@needs_loops
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("silu", [False, True])
def test_normed_codes_differ_by_rounding_alone(channels, silu):
    torch.manual_seed(channels)
    x = torch.randn(2, 37, 11, channels) * torch.logspace(-3, 2, 37)[:, None, None]
    norm = Norm(torch.randn(2, channels), torch.randn(2, channels), silu)
    how = quantizer(channels)
    (codes, sums, planes), (wanted, _, wanted_planes) = encode(x, how, norm), plain_encode(x, how, norm)
    apart = (codes.int() - wanted.int()).abs()
    assert int(apart.max()) <= 1 and int(apart.count_nonzero()) <= 3
    assert torch.equal(sums, codes.float().sum(-1))
    near = 2e-3 * float(wanted_planes.abs().max())
    assert torch.allclose(planes.float(), wanted_planes.float(), rtol=2**-7, atol=near)
    assert len(codes.unique()) > 1


@needs_loops
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
        Geometry((3, 5), (2, 1), (0, 4), (1, 2)),
        Geometry((1, 1), (2, 2), (0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_finished_outputs(channels, geometry, rank):
    torch.manual_seed(channels)
    height, width = 9, 12
    out = [geometry.outputs(size, axis) for axis, size in enumerate((height, width))]
    y, residual = torch.randn(2, 2, *out, channels)
    kinds = [torch.randint(0, 3, (size,), dtype=torch.int32) for size in out]
    planes = torch.randn(geometry.taps * rank, 2, height, width).bfloat16() if rank else None
    side_out = torch.randn(rank, channels) if rank else None
    how = Finish(geometry, torch.randn(channels), side_out, torch.randn(3, 3, channels), *kinds)
    sums = torch.randint(0, 99, (2, height, width)).float()
    for more in ((None, None), (torch.randn(2, channels), None), (torch.randn(2, channels), residual)):
        found, wanted = y.clone(), y.clone()
        moments = finish_(found, sums, planes, how, *more, moments=True)
        plain_finish_(wanted, sums, planes, how, *more)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        total = torch.stack([found.double().sum((1, 2)), found.double().square().sum((1, 2))], 1)
        assert torch.allclose(moments.sum(1), total, rtol=1e-5, atol=1e-5 * float(total.abs().max()))
        assert torch.allclose(moments_of(found).sum(1), total, rtol=1e-5, atol=1e-5 * float(total.abs().max()))


@pytest.mark.parametrize("plain", [pytest.param(False, marks=needs_loops), True])
def test_folded_norm_is_groupnorm(monkeypatch, plain):
    if plain:
        monkeypatch.setattr(around_product, "library", lambda: None)
    torch.manual_seed(0)
    x = (torch.randn(2, 12, 17, 9) + 5).contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(3, 12)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    with torch.no_grad():
        folded = Norm.of(norm, False, x)
        found = x * folded.scale[:, :, None, None] + folded.shift[:, :, None, None]
        assert torch.allclose(found, norm(x), atol=2e-5)


def test_moments_are_forgotten_when_the_tensor_changes():
    x, norm = torch.randn(1, 4, 5, 6), nn.GroupNorm(2, 4)
    with torch.no_grad():
        x.known_moments = (torch.zeros(1, 1, 2, 4, dtype=torch.float64), x._version)
        first = Norm.of(norm, True, x)
        again = Norm.of(norm, True, x.mul_(1.0))
        assert not torch.allclose(first.scale, again.scale)
        spread = x[:, :2].var(correction=0)
        assert float(again.scale[0, 0]) == pytest.approx(float(spread.rsqrt()), rel=1e-3)


class Net(nn.Module):
    """A block on (N, 8, H, W) with a time embedding."""

    def __init__(self, **options):
        super().__init__()
        self.block = ResnetBlock2D(in_channels=8, groups=2, **options)

    def forward(self, x):
        torch.manual_seed(1)
        return self.block(x, torch.randn(len(x), 6))


@pytest.mark.parametrize("plain", [pytest.param(False, marks=needs_loops), True])
@pytest.mark.parametrize(
    "options",
    [
        {"temb_channels": 6},
        {"temb_channels": 6, "out_channels": 12},
        {"temb_channels": None, "time_embedding_norm": "group"},
        {"temb_channels": 6, "skip_time_act": True},
    ],
)
def test_residual_block_is_the_simulations(monkeypatch, options, plain):
    """Up to codes that rounding flips: rare, so nearly all outputs agree to float32."""
    if plain:
        monkeypatch.setattr(around_product, "library", lambda: None)
    torch.manual_seed(0)
    net = Net(**options).eval().requires_grad_(False)
    x = torch.randn(2, 8, 13, 10).contiguous(memory_format=torch.channels_last)
    quantize_(net, SHARED_SETTING.at("W4A4"))
    calibrate(net, net, [x])
    simulation = inference_form(net, half=True)
    integer = int8_form(simulation)
    fuse_(integer)
    assert isinstance(integer.block, ResidualBlock)
    wanted = simulation(x)
    apart = (integer(x) - wanted).abs() / wanted.abs().max()
    assert float(apart.quantile(0.95)) <= 1e-5 and float(apart.max()) <= 0.1


def test_blocks_that_do_not_fit_stay():
    for options in ({"down": True}, {"output_scale_factor": 2.0}, {"time_embedding_norm": "scale_shift"}):
        torch.manual_seed(0)
        net = Net(temb_channels=6, **options).eval().requires_grad_(False)
        x = torch.randn(1, 8, 12, 8)
        quantize_(net, SHARED_SETTING.at("W8A8"))
        calibrate(net, net, [x])
        simulation = inference_form(net, half=True)
        integer = int8_form(simulation)
        fuse_(integer)
        assert isinstance(integer.block, ResnetBlock2D)
        assert torch.allclose(integer(x), simulation(x), atol=0.1)


def test_normed_layer_is_the_chain():
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(2, 8), torch.randn(1, 8, 9, 7)
    chain = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(8, 5, 3, padding=1)).requires_grad_(False)
    quantize_(chain, SHARED_SETTING.at("W4A4"))
    calibrate(chain, chain, [x])
    simulation = inference_form(chain, half=True)
    found = NormedLayer(simulation[0], True, int8_form(simulation)[2])(x)
    apart = (found - simulation(x)).abs() / simulation(x).abs().max()
    assert float(apart.quantile(0.95)) <= 1e-5
    assert not torch.allclose(found, F.silu(simulation[2](simulation[0](x))))


@pytest.mark.parametrize("size", [None, (17, 15)])
def test_enlarging_is_the_simulations(size):
    """Quantizing and enlarging may change places: outputs agree as a layer's do."""
    torch.manual_seed(0)
    net = nn.Sequential(Upsample2D(8, use_conv=True)).requires_grad_(False)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    quantize_(net, SHARED_SETTING.at("W4A4"))
    calibrate(net, net, [x])
    simulation = inference_form(net, half=True)
    integer = int8_form(simulation)
    fuse_(integer)
    assert isinstance(integer[0], Enlarging)
    wanted = simulation[0](x, size)
    assert integer[0](x, size).shape == wanted.shape
    assert torch.allclose(integer[0](x, size), wanted, atol=1e-5 * float(wanted.abs().max()))
