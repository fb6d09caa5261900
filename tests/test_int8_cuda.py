"""Integer execution on a GPU: its algebra on any device, its kernels by Triton's interpreter, all of it on a GPU."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from int8_cuda_reference import (
    CASES,
    NORM_CASES,
    check,
    check_norm,
    reference_encode,
    reference_multiply,
    reference_normalize,
)
from quant_stand_in import lq_images, tiny_backbone
from test_int8 import layers_with_inputs
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import Form, InferenceLayer, inference_form
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.qartsr import FinetuneLayer
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import calibrate, quant_modules
from tests.benchmarks.gpu import int8_cuda
from tests.benchmarks.gpu.agreement import exact_output, grey_levels, layers_apart
from tests.benchmarks.gpu.fused_norms import FusedGroupNorm, fuse_norms_
from tests.benchmarks.gpu.int8_cuda import CudaIntegerLayer, InFloat32, Kernels, int8_cuda_form

has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Border:
    def __init__(self, table, row_class, column_class):
        self.table, self.row_class, self.column_class = table, row_class, column_class


@pytest.fixture
def reference(monkeypatch):
    """The kernels' definitions in their place."""
    kernels = Kernels(reference_encode, reference_multiply, Border, reference_normalize)
    monkeypatch.setattr(int8_cuda, "triton_kernels", lambda: kernels)


def packed(bits="W4A4", width=8, device="cpu"):
    """QArtSR's layers with an update, untrained, in their shipped form."""
    backbone, images = tiny_backbone(width=width).to(device), [image.to(device) for image in lq_images(2)]
    model = METHODS.get("qartsr").untrained(backbone, bits, images)
    torch.manual_seed(3)
    for layer in quant_modules(model):
        if isinstance(layer, FinetuneLayer):
            nn.init.normal_(layer.merged_out, std=0.02)
    return inference_form(model, half=True), images[0]


@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W2A2"])
def test_layers_equal_the_simulation(reference, bits):
    simulation, image = packed(bits)
    integer = int8_cuda_form(simulation, torch.float32)
    seen = layers_with_inputs(simulation, image)
    assert len(seen) > 100
    for name, layer, x, y in seen:
        found = integer.get_submodule(name)
        assert isinstance(found, CudaIntegerLayer) and found.dtype == torch.float32
        assert float((found(x) - y).abs().max()) <= 1e-5 * float(y.abs().max()), name
        assert float((exact_output(layer, x) - y).abs().max()) <= 1e-5 * float(y.abs().max()), name
    apart = layers_apart(simulation, integer, simulation.prepare(image))
    assert apart["layers"] == len(seen) and apart["integer"]["worst"] <= 1e-5 >= apart["simulation"]["worst"]


def test_whole_images_in_both_precisions(reference):
    """Rounding flips a code here and there, whatever the runtime; a random network amplifies that."""
    simulation, image = packed("W8A8")
    single, half = int8_cuda_form(simulation, torch.float32), int8_cuda_form(simulation)
    exact = copy.deepcopy(simulation).double()
    wanted = simulation.upscale(image)
    floor = grey_levels(exact.upscale(image.double()), wanted)["mean"]
    assert grey_levels(single.upscale(image), wanted)["mean"] <= 2 * floor
    assert half.upscale(image).dtype == torch.bfloat16
    assert grey_levels(half.upscale(image), wanted)["mean"] <= 3 * floor
    assert half.upscale(lq_images(1, size=12)[0]).shape == (1, 3, 48, 48)  # another border
    assert torch.equal(half.upscale(image), half.upscale(image))


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1}),
        (3, {"padding": 1, "stride": 2}),
        (3, {"padding": 2, "dilation": 2}),
        ((1, 3), {"padding": (0, 1)}),
        (1, {"stride": 2}),
        (4, {"padding": 1, "stride": 3, "bias": False}),
    ],
)
@pytest.mark.parametrize("bits", ["W4A4", "W8A8"])
def test_borders_of_every_geometry(reference, kernel, options, bits):
    """The zero-point does not enter where the kernel hangs over the border, for signed codes neither."""
    torch.manual_seed(0)
    x, net = torch.randn(2, 5, 9, 8) + 3.0, nn.Sequential(nn.Conv2d(5, 6, kernel, **options))
    quantize_(net, SHARED_SETTING.at(bits))
    calibrate(net, net, [x])
    simulation = inference_form(net, half=True)
    (layer,) = int8_cuda_form(simulation, torch.float32)
    wanted = simulation(x)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert layer(given).shape == wanted.shape
        assert torch.allclose(layer(given), wanted, atol=2e-6 * float(wanted.abs().max()))
    assert layer(x[..., :6, :7]).shape == simulation(x[..., :6, :7]).shape


def test_other_layers_stay_in_float32(reference):
    """Scales per group are no integer product; rounded to bfloat16 they would be other scales."""
    torch.manual_seed(0)
    grouped = InferenceLayer(nn.Linear(8, 8), Form(QuantizerConfig(4, PerGroup(4)), QuantizerConfig(4)))
    with pytest.raises(QartsrError, match="no layer of this model is an integer product"):
        int8_cuda_form(nn.Sequential(grouped))
    net = nn.Sequential(nn.Linear(8, 8))
    quantize_(net, SHARED_SETTING.at("W4A4"))
    calibrate(net, net, [torch.randn(3, 8)])
    for part in grouped.float_parts().values():
        part.fill_(1.001)
    integer = int8_cuda_form(nn.Sequential(inference_form(net, half=True)[0], grouped))
    assert isinstance(integer[1], InFloat32) and float(integer[1].layer.scale[0, 0]) == pytest.approx(1.001)
    assert integer(torch.randn(2, 3, 8)).dtype == torch.bfloat16


def test_norms_are_fused_with_what_follows_them():
    """Outputs stay; the shared SiLU of a block still acts on the time embedding; other modules are left alone."""
    backbone, image = tiny_backbone(), lq_images(1)[0]
    wanted, before = backbone.upscale(image), sum(isinstance(part, nn.GroupNorm) for part in backbone.modules())
    blocks = sum(isinstance(part, ResnetBlock2D) for part in backbone.modules())
    fused = copy.deepcopy(backbone)
    assert fuse_norms_(fused, reference_normalize) == 2 * blocks + 3  # and the ends of encoder, UNet, decoder
    norms = [part for part in fused.modules() if isinstance(part, FusedGroupNorm)]
    assert len(norms) == before > 2 * blocks + 3 == sum(norm.silu for norm in norms)
    assert not any(isinstance(part, nn.GroupNorm) for part in fused.modules())
    assert float((fused.upscale(image) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    x = torch.randn(1, 8, 5, 3)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.flatten(2)):
        assert norms[-1](given).shape == given.shape
    assert norms[-1](x).is_contiguous(memory_format=torch.channels_last)


def test_norms_that_are_not_recognised_stay():
    block = ResnetBlock2D(in_channels=8, temb_channels=8, groups=4, time_embedding_norm="scale_shift").eval()
    plain = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.GroupNorm(4, 8, affine=False))
    for net, inputs in ((block, (torch.randn(1, 8, 4, 4), torch.randn(1, 8))), (plain, (torch.randn(1, 8, 4, 4),))):
        wanted = net(*inputs)
        assert fuse_norms_(net, reference_normalize) == 0
        assert torch.allclose(net(*inputs), wanted, atol=1e-5)
    assert type(plain[1]) is nn.SiLU and type(plain[2]) is nn.GroupNorm and type(block.nonlinearity) is nn.SiLU


def test_fused_models_equal_unfused_ones(reference, monkeypatch):
    simulation, image = packed("W8A8")
    fused = int8_cuda_form(simulation, torch.float64)
    monkeypatch.setattr(int8_cuda, "fuse_norms_", lambda *_: 0)
    wanted = int8_cuda_form(simulation, torch.float64).upscale(image)
    assert any(isinstance(part, FusedGroupNorm) for part in fused.modules())
    assert grey_levels(fused.upscale(image), wanted)["mean"] <= 0.05


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.benchmarks.gpu.triton_kernels.encode", None)
    with pytest.raises(QartsrError, match="--runtime int8: needs Triton on a GPU"):
        int8_cuda.triton_kernels()


@has_triton
@pytest.mark.slow
def test_kernels_by_the_interpreter():
    script, root = Path(__file__).with_name("int8_cuda_reference.py"), Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("equal") == len(CASES) + len(NORM_CASES), done.stderr[-2000:]


@has_triton
def test_tiles():
    from tests.benchmarks.gpu.triton_kernels.tiles import Tiles, candidates, fastest

    def first(*sizes):
        return candidates(*sizes, 132)[0]

    assert (first(512 * 512, 256, 256, 9).n, first(512 * 512, 128, 320, 9).n) == (256, 128)
    assert (first(512 * 512, 256, 256, 9).k, first(512 * 512, 128, 320, 9).k) == (128, 64)
    assert (first(512 * 512, 3, 32, 9).n, first(512 * 512, 3, 32, 9).k) == (32, 32)
    small = candidates(64, 1280, 2560, 9, 132)
    assert len(small) == 3 and small[0].splits > 1 == small[-1].splits and small[0].programs(64, 1280) >= 132
    assert first(1, 1280, 320, 1).splits == 1  # five steps are too few to share
    assert fastest("untried", (Tiles(1, 1, 1, 1),), lambda _: 1 / 0) == Tiles(1, 1, 1, 1)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("sizes", [*CASES, (1, 64, 64, 320, 320, 4, (3, 3), (1, 1), (1, 1), (1, 1))])
def test_kernels_on_a_gpu(sizes):
    check(sizes, "cuda")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("sizes", [*NORM_CASES, (1, 512 * 512, 128, 32), (1, 64, 2560, 32)])
def test_norms_on_a_gpu(sizes):
    check_norm(*sizes, device="cuda")


@pytest.mark.gpu
@on_gpu
def test_models_on_a_gpu():
    simulation, image = packed(width=32, device="cuda")
    integer = int8_cuda_form(simulation, torch.float32)
    apart = layers_apart(simulation, integer, simulation.prepare(image))
    assert apart["layers"] > 100 and apart["integer"]["worst"] <= 2e-5, apart
    found, layer = int8_cuda_form(simulation).upscale(image), integer.vae.decoder.conv_in
    x = torch.randn(1, 4, 16, 16, device="cuda")
    assert torch.equal(torch.compile(layer)(x), layer(x))
    assert found.is_cuda and found.dtype == torch.bfloat16 and bool(torch.isfinite(found).all())
