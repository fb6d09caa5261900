"""Integer execution against its simulation: sums, layers, whole images."""

import copy
import os
import statistics
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from quant_stand_in import lq_images, tiny_backbone
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.geometry import Geometry, rows_by_tap, side_output, side_products
from qartsr_lib.deploy.int8 import HALVED, WHOLE, IntegerLayer, IntegerProduct, int8_form, weights_of_8_bits
from qartsr_lib.deploy.layer import Form, InferenceLayer, inference_form
from qartsr_lib.deploy.packed_file import save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES
from qartsr_lib.methods import METHODS, svdquant
from qartsr_lib.methods.qartsr import FinetuneLayer
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import calibrate, quant_modules
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES

SETTINGS = [(name, bits) for name in ("maxmin", "svdquant", "qartsr") for bits in ("W8A8", "W4A4", "W2A2")]
SETTINGS += [("passionsr", "W4A4")]


@pytest.fixture(scope="module", params=SETTINGS, ids="-".join)
def pair(request):
    """(simulation, integer form, calibration images) of a packed model."""
    name, bits = request.param
    backbone, images = tiny_backbone(), lq_images(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IMAGE_LOSSES._entries, "vae-features+mse", lambda device: nn.functional.mse_loss)
        patch.setattr(svdquant, "GRID", 3)
        patch.setattr(svdquant, "REFINEMENTS", 2)
        if name == "qartsr":  # what training changes, without its time
            model = METHODS.get(name).untrained(backbone, bits, images)
            torch.manual_seed(3)
            for layer in quant_modules(model):
                if isinstance(layer, FinetuneLayer):
                    nn.init.normal_(layer.merged_out, std=0.02)
        else:
            model = METHODS.get(name).build(backbone, bits, images).backbone
    simulation = inference_form(model, half=True)
    return simulation, int8_form(simulation), images


def layers_with_inputs(simulation, image):
    """(name, layer, its input, its output) of every layer of the simulation for an image."""
    seen = []
    for name, layer in simulation.named_modules():
        if isinstance(layer, InferenceLayer):
            layer.register_forward_hook(lambda _, x, y, name=name, layer=layer: seen.append((name, layer, x[0], y)))
    simulation.upscale(image)
    for layer in simulation.modules():
        layer._forward_hooks.clear()
    return seen


def test_sums_are_exact_and_layers_equal(pair):
    """Each layer fed the simulation's input: integer sums against float64, outputs to 1e-5."""
    simulation, integer, images = pair
    seen = layers_with_inputs(simulation, images[0])
    assert len(seen) > 100
    for name, layer, x, y in seen:
        found = integer.get_submodule(name)
        assert isinstance(found, IntegerLayer)
        steps = (layer.scaled_input(x) - layer.input_zero_point) / layer.input_scale
        codes = steps.clamp(0, layer.form.input.code_range[1]).round()
        weight = layer.codes.double() - 2 ** (layer.form.weight.bits - 1)
        sums = integer_sums(found.product, codes.to(torch.uint8))
        assert torch.equal(sums.double(), layer.operate(codes.double(), weight, None)), name
        assert float((found(x) - y).abs().max()) <= 1e-5 * float(y.abs().max()), name


def integer_sums(product, codes):
    """The bare sums as float32; codes and sums as a float layer's input and output."""
    ones = torch.ones_like(product.scale)
    if product.shape is None:
        return product(codes, ones)
    return product(codes.permute(0, 2, 3, 1), ones).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kernel", [0, 1, 3])
@pytest.mark.parametrize("weights", [HALVED, None])
def test_the_largest_codes_of_8_bits(kernel, weights):
    """255 x 127 and 255 x -128 from the same neighbours: what 16 bits are too few for."""
    codes = torch.randint(-128, 128, (7, 66, *[kernel] * 2 * bool(kernel)), generator=torch.manual_seed(0))
    codes[0], codes[1], codes[2, ::2] = 127, -128, 127
    geometry = Geometry((kernel,) * 2, padding=(kernel // 2,) * 2) if kernel else Geometry()
    product = IntegerProduct(codes.to(torch.int8), torch.ones(7), geometry, weights)
    x = torch.randint(0, 256, (2, 9, 5, 66))
    x[0] = 255
    if kernel:
        x = x.permute(0, 3, 1, 2)
    operate = F.linear if not kernel else lambda x, w: F.conv2d(x, w, padding=kernel // 2)
    assert torch.equal(integer_sums(product, x.to(torch.uint8)).double(), operate(x.double(), codes.double()))
    assert product.halved == ((weights or weights_of_8_bits()) == HALVED)


def test_weights_of_7_bits_are_never_halved():
    codes = torch.tensor([[-64, 64, 63]], dtype=torch.int8)
    assert not IntegerProduct(codes, torch.ones(1), Geometry(), HALVED).halved


PICTURES = """
import sys, torch
from qartsr_lib.base.lean_imports import lean_process
lean_process()
from qartsr_lib.deploy.int8 import weights_of_8_bits
from qartsr_lib.deploy.packed_file import load_packed
from qartsr_lib.deploy.runtimes import RUNTIMES
torch.set_num_threads(1)
lq = torch.rand(1, 3, 12, 9, generator=torch.manual_seed(0))
for file in sys.argv[1:]:
    print(RUNTIMES.get("int8")(load_packed(file)).upscale(lq).numpy().tobytes().hex())
print(weights_of_8_bits())
"""


def test_pictures_have_the_same_bits_whatever_onednn_may_use(tmp_path, monkeypatch):
    """A process that is kept to AVX2, where products of 8 bits saturate, against one that may use all there is."""
    monkeypatch.setattr(svdquant, "GRID", 3)
    monkeypatch.setattr(svdquant, "REFINEMENTS", 2)
    files = [
        tmp_path / f"{name}-{bits}.safetensors" for name in ("maxmin", "svdquant") for bits in ("W8A8", "W4A4", "W2A2")
    ]
    for file in files:
        save_packed(
            METHODS.get(file.stem.split("-")[0]).build(tiny_backbone(), file.stem[-4:], lq_images(2)).backbone, file
        )
    found = []
    for cap in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}):
        environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"} | cap
        words = [sys.executable, "-c", PICTURES, *map(str, files)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        *pictures, weights = done.stdout.split()
        assert len(set(pictures)) == len(files) and weights in (WHOLE, HALVED)
        found.append(pictures)
    assert found[0] == found[1]


def test_images_differ_no_more_than_float32_from_float64(pair):
    """Rounding flips a code here and there, and a low-bit network amplifies that, whatever the runtime."""
    simulation, _, _ = pair
    integer = RUNTIMES.get("int8")(simulation)  # with what surrounds the layers
    if 2 in [layer.form.weight.bits for layer in simulation.modules() if isinstance(layer, InferenceLayer)]:
        pytest.skip("at 2 bits a single flip gives this random network another image; layers are compared above")
    exact = copy.deepcopy(simulation).double()
    apart, floor = [], []
    for image in lq_images(9, size=9, seed=7):
        wanted = simulation.upscale(image)
        apart.append(float((integer.upscale(image) - wanted).abs().mean()))
        floor.append(float((exact.upscale(image.double()) - wanted).abs().mean()))
    # One flip in a random network gives another image, so the middle one of nine is compared.
    assert statistics.median(apart) <= 2 * statistics.median(floor) + 1e-3


def test_side_branch_is_the_convolution():
    torch.manual_seed(0)
    x, side_in, side_out = torch.randn(2, 4, 7, 6), torch.randn(3, 36).bfloat16().float(), torch.randn(5, 3)
    for stride, padding in (((1, 1), (1, 1)), ((2, 1), (0, 2))):
        geometry = Geometry((3, 3), stride, padding, (1, 1))
        half = x.permute(0, 2, 3, 1).bfloat16()
        found = side_output(
            side_products(half, rows_by_tap(side_in, geometry).bfloat16(), geometry), side_out, geometry
        )
        narrow = F.conv2d(half.permute(0, 3, 1, 2).double(), side_in.double().view(3, 4, 3, 3), None, stride, padding)
        wanted = torch.einsum("nrhw,or->nhwo", narrow, side_out.double())
        assert torch.allclose(found.double(), wanted, atol=0.02 * float(wanted.abs().max()))


def converted(layer, x, **form):
    net = nn.Sequential(layer)
    quantize_(net, SHARED_SETTING.at("W4A4"))
    calibrate(net, net, [x])
    return inference_form(net, half=True)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1}),
        (3, {"padding": 1, "stride": 2}),
        (5, {"padding": 2}),
        (3, {"padding": 2, "dilation": 2}),
        ((1, 3), {"padding": (0, 1)}),
        (1, {"stride": 2}),
        (4, {"padding": 1, "stride": 3, "bias": False}),
    ],
)
def test_borders_of_every_geometry(kernel, options):
    """The zero-point does not enter where the kernel hangs over the border."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 8) + 3.0
    simulation = converted(nn.Conv2d(5, 6, kernel, **options), x)
    (layer,) = int8_form(simulation)
    wanted = simulation(x)
    assert layer(x).shape == wanted.shape
    assert torch.allclose(layer(x), wanted, atol=2e-6 * float(wanted.abs().max()))


def test_layers_without_an_integer_product(tmp_path):
    grouped = InferenceLayer(nn.Linear(8, 8), Form(QuantizerConfig(4, PerGroup(4)), QuantizerConfig(4)))
    floating = InferenceLayer(nn.Linear(8, 8), Form(QuantizerConfig(4), None))
    for layer in (grouped, floating):
        assert not layer.is_integer
        with pytest.raises(QartsrError, match="no layer of this model is an integer product"):
            int8_form(nn.Sequential(layer))
