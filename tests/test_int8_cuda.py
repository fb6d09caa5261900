"""Integer execution on a GPU: its algebra on any device, its kernels by Triton's interpreter, all of it on a GPU."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from int8_cuda_reference import CASES, check, reference_encode, reference_multiply
from quant_stand_in import lq_images, tiny_backbone
from test_int8 import layers_with_inputs
from torch import nn

from qartsr_lib.deploy import int8_cuda
from qartsr_lib.deploy.agreement import exact_output, grey_levels, layers_apart
from qartsr_lib.deploy.inference_form import inference_form
from qartsr_lib.deploy.int8_cuda import CudaIntegerLayer, InFloat32, Kernels, int8_cuda_form
from qartsr_lib.deploy.layer import Form, InferenceLayer
from qartsr_lib.deploy.runtimes import RUNTIMES
from qartsr_lib.errors import QartsrError
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.qartsr_layers import FinetuneLayer
from qartsr_lib.quant import SHARED_SETTING, PerGroup, QuantizerConfig, calibrate, quant_modules, quantize_

has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Border:
    def __init__(self, table, row_class, column_class):
        self.table, self.row_class, self.column_class = table, row_class, column_class


@pytest.fixture
def reference(monkeypatch):
    """The kernels' definitions in their place."""
    kernels = Kernels(reference_encode, reference_multiply, Border)
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


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "qartsr_lib.deploy.triton_kernels.encode", None)
    with pytest.raises(QartsrError, match="--runtime int8: needs Triton on a GPU"):
        int8_cuda.triton_kernels()


@has_triton
@pytest.mark.slow
def test_kernels_by_the_interpreter():
    script, root = Path(__file__).with_name("int8_cuda_reference.py"), Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("equal") == len(CASES), done.stderr[-2000:]


@has_triton
def test_tiles():
    from qartsr_lib.deploy.triton_kernels.product import tiles_for

    assert (tiles_for(512 * 512, 256, 256, 132).m, tiles_for(512 * 512, 256, 256, 132).k) == (128, 128)
    assert (tiles_for(64, 1280, 320, 132).n, tiles_for(64, 1280, 320, 132).k) == (32, 64)
    assert (tiles_for(512 * 512, 3, 32, 132).n, tiles_for(512 * 512, 3, 32, 132).k) == (32, 32)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("sizes", [*CASES, (1, 64, 64, 320, 320, 4, (3, 3), (1, 1), (1, 1), (1, 1))])
def test_kernels_on_a_gpu(sizes):
    check(sizes, "cuda")


@pytest.mark.gpu
@on_gpu
def test_models_on_a_gpu():
    simulation, image = packed(width=32, device="cuda")
    integer = int8_cuda_form(simulation, torch.float32)
    apart = layers_apart(simulation, integer, simulation.prepare(image))
    assert apart["layers"] > 100 and apart["integer"]["worst"] <= 2e-5, apart
    found, layer = RUNTIMES.get("int8")(simulation).upscale(image), integer.vae.decoder.conv_in
    x = torch.randn(1, 4, 16, 16, device="cuda")
    assert torch.equal(torch.compile(layer)(x), layer(x))
    assert found.is_cuda and found.dtype == torch.bfloat16 and bool(torch.isfinite(found).all())
