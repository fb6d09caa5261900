"""Exported graphs: what the simulation computes, with integer weights, for all sizes; and what is told where not."""

import errno
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from quant_stand_in import lq_images, tiny_backbone
from torch._subclasses import FakeTensorMode

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base import files
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.cli import main
from qartsr_lib.deploy import executorch_file, export, export_check
from qartsr_lib.deploy.layer import InferenceLayer, inference_form
from qartsr_lib.deploy.traced import TracedLayer, TracedNetwork
from qartsr_lib.images.image import psnr
from qartsr_lib.methods import METHODS, svdquant
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.scheme import SHARED_SETTING, variant
from qartsr_lib.quant.states import calibrate

SLOW = pytest.param("svdquant-released", marks=pytest.mark.slow)  # searches phi


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(svdquant, "GRID", 3)


def smaller_backbone():
    """As `tiny_backbone`, with fewer layers: PyTorch's exporter takes a quarter of a second for each."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=4,
    )
    backbone = OneStepSR("smaller", 500, vae, unet, torch.randn(1, 3, 6), scaled=True)
    return backbone.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def quantized(backbone, method, bits, half=False):
    options = {"images": 4} if method == "qartsr" else {}
    model = METHODS.get(method).build(backbone, bits, lq_images(), **options).backbone
    return inference_form(model, half)


def taps(network, image):
    """What a graph gives by name, from the traced form in torch."""
    found = {"image": network(image)[0]}
    return found | {
        f"{name}:{end}": t for name, *pair in network.taps.seen for end, t in zip(("in", "out"), pair, strict=True)
    }


@pytest.fixture(scope="module")
def model():
    return quantized(smaller_backbone(), "maxmin", "W4A4")


def test_alphas_are_numbers_even_where_tensors_have_none():
    assert [schedule.alpha(label) for label in (1, 500, 1000)] == [
        float(schedule.alphas_cumprod()[i]) for i in (0, 499, 999)
    ]
    with FakeTensorMode():
        assert type(schedule.alpha(1) ** 0.5) is float


@pytest.mark.parametrize("method", ["maxmin", "qartsr", SLOW])
@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W2A2"])
def test_the_traced_form_computes_what_the_simulation_does(method, bits):
    simulated = quantized(smaller_backbone() if method == SLOW.values[0] else tiny_backbone(), method, bits)
    network = TracedNetwork(simulated)
    for image in (simulated.prepare(lq_images(1, size)[0]) for size in (6, 9)):  # sums in another order at the most
        export_check.check_layers(simulated, lambda x: taps(network, x), image, 1e-6, "x")
    layers = [layer for layer in simulated.modules() if isinstance(layer, InferenceLayer)]
    assert len(network.taps.seen) == len(layers) and not any(isinstance(layer, TracedLayer) for layer in layers)


@pytest.mark.parametrize("method", ["qartsr", SLOW])
def test_layers_of_packed_models_in_16_bits(method):
    simulated = quantized(smaller_backbone(), method, "W4A4", half=True)
    image = simulated.prepare(lq_images(1, 9)[0])
    network = TracedNetwork(simulated)
    export_check.check_layers(simulated, lambda x: taps(network, x), image, 1e-3, "x")
    assert all(layer.form.side_half for layer in simulated.modules() if isinstance(layer, InferenceLayer))


def test_quantized_attention_products():
    backbone = tiny_backbone()
    quantize_(backbone, variant(SHARED_SETTING, attention_bits="a").at("W6A6"))
    calibrate(backbone, backbone.upscale, lq_images())
    simulated = inference_form(backbone)
    network, image = TracedNetwork(simulated), simulated.prepare(lq_images(1)[0])
    export_check.check_layers(simulated, lambda x: taps(network, x), image, 1e-6, "x")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to load method forward, error: 0x:1")])
def test_a_program_without_memory_is_one_line(monkeypatch, error):
    """What executorch 1.5.1 raises then, at the program and at the method."""

    def load_program(_):
        raise error

    runtime = types.SimpleNamespace(get=lambda: types.SimpleNamespace(load_program=load_program))
    monkeypatch.setitem(sys.modules, "executorch", types.ModuleType("executorch"))
    monkeypatch.setitem(sys.modules, "executorch.runtime", types.SimpleNamespace(Runtime=runtime))
    with pytest.raises(QartsrError, match=r"cannot load the program \(.+\), which reserves memory for images of 512"):
        executorch_file.run_executorch(b"")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("unet.conv_in", "unet.conv_in differs first"),
        ("vae.decoder.conv_out", "vae.decoder.conv_out differs first"),
        ("norm", "the input of unet.mid_block.resnets.0.conv2 differs first"),
        ("image", "what follows the last layer differs first"),
    ],
)
@torch.no_grad()
def test_what_differs_first_is_told(model, where, told):
    image, network = export_check.picture_of(model), TracedNetwork(model)
    if where == "norm":
        norm = network.model.unet.mid_block.resnets[0].norm2
        norm.weight = torch.nn.Parameter(norm.weight * 1.01)
    elif where != "image":
        layer = network.model.get_submodule(where)
        layer.bias = layer.bias + 0.05
    found = taps(network, image)
    if where == "image":
        found["image"] = found["image"] * 0.99
    with pytest.raises(QartsrError, match=f"x: not written; {told} from the simulation"):
        export_check.check_layers(model, lambda _: found, image, 5e-3, "x")
    sound = TracedNetwork(model)
    assert export_check.check_layers(model, lambda x: taps(sound, x), image, 1e-6, "x") == 0


@torch.no_grad()
def test_pictures_may_differ_by_rounding_noise_and_no_more(model):
    image = export_check.picture_of(model)
    assert image.shape[-2:] == (96, 128)
    noise = torch.rand(image.shape) - 0.5
    found = export_check.check_picture(model, lambda x: {"image": model(x).clamp(0, 1) + 1e-3 * noise}, image, "x")
    assert found.psnr > 60 > found.floor and 0.1 < found.levels < 0.2
    large = 12 * 10 ** (-(found.floor - 10) / 20) * noise  # standard deviation of `noise`: 1 / sqrt(12)
    with pytest.raises(QartsrError, match="x: not written; its picture is too far .* rounding noise alone"):
        export_check.check_picture(model, lambda x: {"image": model(x).clamp(0, 1) + large}, image, "x")


def test_formats_endings_and_packages_are_told(model, tmp_path, capsys, monkeypatch):
    assert main(["export", "--checkpoint", "q", "--out", str(tmp_path / "a.onx"), "--format", "onx"]) == 2
    assert "--format onx: choose one of packed, onnx, openvino, executorch" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["export", "--checkpoint", "q", "--out", str(tmp_path / "a.onnx"), "--format", "onnx"]) == 2
    assert "--format onnx: needs the package onnxruntime; in the checkout, run python -m pip" in capsys.readouterr().err
    with pytest.raises(QartsrError, match="name a file that ends in .xml"):
        export.save_exported(model, tmp_path / "a.onnx", "openvino")
    with pytest.raises(QartsrError, match="the model to export is not quantized"):
        export.save_exported(smaller_backbone(), tmp_path / "a.xml", "openvino")
    assert not list(tmp_path.iterdir())


def test_weights_of_something_else_stay(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    others = tmp_path / "pytorch_model.bin"
    others.write_text(OLD[1])
    with pytest.raises(QartsrError, match="pytorch_model.bin: is there, and would be replaced"):
        export.save_exported(model, others.with_suffix(".xml"), "openvino")
    assert others.read_text() == OLD[1]
    others.with_suffix(".xml").write_text(OLD[0])  # a model of before
    export.check_export("openvino", others.with_suffix(".xml"))


OLD, NEW = ["old graph", "old weights"], ["new graph", "new weights"]


def test_weights_beside_a_graph_stay_where_the_graph_cannot_be_written(tmp_path, monkeypatch):
    path, weights = tmp_path / "a.xml", tmp_path / "a.bin"
    path.write_text(OLD[0]), weights.write_text(OLD[1])
    model = OneStepSR.__new__(OneStepSR)
    torch.nn.Module.__init__(model)

    def save(graph, temporary):
        temporary.write_text(NEW[0]), temporary.with_suffix(".bin").write_text(NEW[1])

    fake = export.FORMATS["openvino"]._replace(packages=(), make=lambda _: (None, None), save=save, run=lambda _: None)
    monkeypatch.setitem(export.FORMATS, "openvino", fake)
    monkeypatch.setattr(export, "_simulated", lambda model, _: model)
    for name in ("picture_of", "check_layers", "check_picture"):
        monkeypatch.setattr(export, name, lambda *_: None)

    def full(temporary):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch, pytest.raises(QartsrError, match="the disk is full"):
        patch.setattr(files, "flush", full)  # what write_atomically calls; the weights were flushed before
        export.save_exported(model, path, "openvino")
    there = [path, weights]
    assert sorted(tmp_path.iterdir()) == sorted(there) and [file.read_text() for file in there] == OLD
    export.save_exported(model, path, "openvino")
    assert sorted(tmp_path.iterdir()) == sorted(there) and [file.read_text() for file in there] == NEW


def exported(model, folder, name):
    for package in export.FORMATS[name].packages:
        pytest.importorskip(package)
    path = folder / f"model{export.FORMATS[name].ending}"
    return path, export.save_exported(model, path, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bits", "half", "name"),
    [
        ("maxmin", "W4A4", False, "onnx"),
        ("svdquant-released", "W8A8", False, "onnx"),
        ("qartsr", "W2A2", True, "onnx"),
        ("maxmin", "W2A2", False, "openvino"),
        ("svdquant-released", "W4A4", True, "openvino"),
        ("qartsr", "W4A4", True, "executorch"),
        ("svdquant-released", "W2A2", False, "executorch"),
    ],
)
def test_the_file_is_the_simulation_at_all_sizes(tmp_path, method, bits, half, name, monkeypatch):
    # Latents of this small network are half as large as the image, not an eighth: attention would reserve gigabytes.
    monkeypatch.setattr(executorch_file, "LARGEST", 128)
    simulated = quantized(smaller_backbone(), method, bits, half)
    path, told = exported(simulated, tmp_path, name)
    assert told.psnr >= told.floor - 10
    run = export.FORMATS[name].run(path)
    for height, width in ((5, 8), (12, 7)):
        image = simulated.prepare(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height)))
        with torch.no_grad():
            mine, theirs = simulated(image).clamp(0, 1), run(image)["image"]
        assert theirs.shape == (1, 3, 4 * height, 4 * width)
        assert psnr(mine, theirs) > told.floor - 15
    assert len(list(tmp_path.iterdir())) == (2 if name == "openvino" else 1)


@pytest.mark.slow
def test_weights_are_integers_in_the_file(model, tmp_path):
    path, _ = exported(model, tmp_path, "onnx")
    import onnx

    graph = onnx.load(path).graph
    kinds = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    codes = {name.removeprefix("model."): kind for name, kind in kinds.items() if name.endswith(".codes")}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, InferenceLayer)}
    assert codes == {f"{name}.codes": f"UINT{4 * -(-layer.form.weight.bits // 4)}" for name, layer in layers.items()}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, layer in layers.items():
        assert np.array_equal(stored[f"model.{name}.codes"].astype(np.uint8), layer.codes.numpy()), name
    largest = max(tensor.size for name, tensor in stored.items() if not name.endswith(".codes"))
    assert largest < max(layer.codes.numel() for layer in layers.values())  # no weight is there as floats
    assert "/" not in "".join(node.doc_string + str(node.metadata_props) for node in graph.node)  # nor paths


@pytest.mark.slow
def test_a_broken_layer_is_named_and_no_file_left(model, tmp_path, monkeypatch):
    sound = TracedLayer.quantized_input

    def broken(self, scaled):
        return sound(self, scaled) + (0.05 if self.name == "unet.conv_in" else 0)

    monkeypatch.setattr(TracedLayer, "quantized_input", broken)
    with pytest.raises(QartsrError, match="model.onnx: not written; unet.conv_in differs first from the simulation"):
        exported(model, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())
