"""NaN and infinity in weights, in any file and any runtime: one line, exit status 2, and no picture."""

import copy
import json
import shutil

import pytest
import torch
from quant_stand_in import lq_images, saved_both_ways, tiny_backbone
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qartsr_lib.backbones.base import STAGES, watch_
from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.base.errors import Diverged
from qartsr_lib.base.files import sha256
from qartsr_lib.base.provenance import tensors_sha256
from qartsr_lib.cli import main
from qartsr_lib.deploy import around_product
from qartsr_lib.deploy.int8 import int8_form
from qartsr_lib.deploy.packed_file import save_packed
from qartsr_lib.images.image import write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.checkpoint import load_quantized

NAN, INF = torch.nan, torch.inf


@pytest.fixture
def photograph(tmp_path, home):
    return write_png(tmp_path / "in" / "cat.png", torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0)))


def spoil(file, key, value, metadata=None):
    """Put `value` into one place of one tensor of a .safetensors file."""
    tensors = load_file(file)
    tensors[key].view(-1)[tensors[key].numel() // 2] = value
    save_file(tensors, str(file), metadata and metadata(tensors))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the shipped weights, in use."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("vae", "embedded-T0001", "embedded-scaled-T0001"):
        shutil.copy(PACKAGED_WEIGHTS / f"{name}.safetensors", folder)
    monkeypatch.setenv("QARTSR_BACKBONE_WEIGHTS", str(folder))
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A quantized folder and its packed file."""
    folder = tmp_path_factory.mktemp("sound")
    saved_both_ways("W4A4", 8, folder)
    return folder


def refused(capsys, words, out, *told):
    """Running `words` ends with one line that has all of `told`, and without `out`."""
    assert main([str(word) for word in words]) == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in text
    assert all(word in lines[0] for word in told), lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("embedded-T0001", "unet.conv_in.weight", NAN),
        ("vae", "decoder.conv_norm_out.bias", INF),
        ("vae", "scaling_factor", -INF),
    ],
)
def test_weights_of_a_backbone(photograph, weights, tmp_path, capsys, name, key, value):
    file, out = weights / f"{name}.safetensors", tmp_path / "out"
    spoil(file, key, value)
    for extra in ([], ["--method", "maxmin", "--bits", "W4A4"]):
        words = ["upscale", photograph, "--out", out, "--backbone", "embedded", *extra]
        refused(capsys, words, out, str(file), key, "NaN or infinity")


def test_weights_that_quantize_starts_from(photograph, weights, tmp_path, capsys):
    file, out = weights / "embedded-scaled-T0001.safetensors", tmp_path / "q"
    spoil(file, "unet.conv_in.weight", torch.nan)
    words = ["quantize", "--images", photograph.parent, "--out", out, "--crops", 2]
    refused(capsys, words, out, str(file), "unet.conv_in.weight")


def spoiled_folder(sound, to, value, key):
    shutil.copytree(sound / "q", to)
    described = json.loads((to / "quantized.json").read_text())
    file = to / described["tensors"]["file"]
    spoil(file, key, value)
    described["tensors"]["sha256"] = sha256(file)
    (to / "quantized.json").write_text(json.dumps(described))
    return file


@pytest.mark.parametrize(
    ("key", "value"),
    [("unet.conv_in.weight", NAN), ("unet.conv_in.bias", -INF), ("unet.conv_out.input_quantizer.scale", INF)],
)
def test_a_quantized_folder(photograph, sound, tmp_path, capsys, value, key):
    file, out = spoiled_folder(sound, tmp_path / "q", value, key), tmp_path / "out"
    checkpoint = ["--checkpoint", tmp_path / "q"]
    refused(capsys, ["upscale", photograph, "--out", out, *checkpoint], out, str(file), key)
    packed = tmp_path / "model.safetensors"
    refused(capsys, ["export", *checkpoint, "--out", packed], packed, str(file), key)


@pytest.mark.parametrize("runtime", ["simulate", "int8"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [("scale", NAN), ("input_scale", INF), ("zero_point", -INF), ("bias", NAN), ("others", NAN)],
)
def test_a_packed_file(photograph, sound, tmp_path, capsys, monkeypatch, runtime, value, kind):
    monkeypatch.setattr(around_product, "library", lambda: None)
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    shutil.copy(sound / "model.safetensors", file)
    with safe_open(str(file), framework="pt") as opened:
        described = json.loads(opened.metadata()["qartsr"])
    described.pop("description_sha256")
    spoil(file, kind, value, lambda tensors: {"qartsr": json.dumps(described | {"sha256": tensors_sha256(tensors)})})
    words = ["upscale", photograph, "--out", out, "--checkpoint", file, "--runtime", runtime]
    refused(capsys, words, out, f"{file}: ", "holds NaN or infinity")


@pytest.mark.parametrize(
    ("name", "key", "stage"),
    [
        ("embedded-T0001", "vae.quant_conv.weight", "z_l"),
        ("embedded-T0001", "unet.conv_in.weight", "eps"),
        ("vae", "decoder.conv_in.weight", "image"),
    ],
)
def test_numbers_that_overflow_on_the_way(photograph, weights, tmp_path, capsys, name, key, stage):
    """Finite weights, too large for float32's products: the image and the stage are named."""
    file, out = weights / f"{name}.safetensors", tmp_path / "out"
    tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
    tensors[key].fill_(3e38)
    save_file(tensors, str(file))
    words = ["upscale", photograph, "--out", out, "--backbone", "embedded"]
    refused(capsys, words, out, str(photograph), stage, "not finite", "embedded")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    built = METHODS.get("maxmin").build(tiny_backbone(), "W4A4", lq_images()).backbone
    return save_packed(built, tmp_path_factory.mktemp("tiny") / "model.safetensors")


@pytest.mark.parametrize("form", [copy.deepcopy, int8_form])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_watched_in_every_runtime(tiny, monkeypatch, form, stage):
    monkeypatch.setattr(around_product, "library", lambda: None)
    model, lq = form(tiny), lq_images(1)[0]
    plain = model.upscale(lq)
    compute = getattr(model, stage)
    setattr(model, stage, lambda *inputs: compute(*inputs) + torch.nan)
    watch_(model, "model.safetensors")
    with pytest.raises(Diverged, match=r"not finite.*model\.safetensors") as told:
        model.upscale(lq)
    assert STAGES[stage] in str(told.value)
    setattr(model, stage, compute)
    assert torch.equal(model.upscale(lq), plain)


def test_a_quantization_that_is_not_finite_is_not_kept(photograph, tmp_path, capsys, monkeypatch):
    method, out = METHODS.get("maxmin"), tmp_path / "q"
    build = type(method).build

    def diverging(*arguments, **options):
        result = build(method, *arguments, **options)
        result.backbone.unet.conv_in.weight.data[0] = torch.nan
        return result

    monkeypatch.setattr(method, "build", diverging, raising=False)
    words = ["quantize", "--method", "maxmin", "--images", photograph.parent, "--out", out, "--crops", 2]
    refused(capsys, words, out, "MaxMin W4A4", "unet.conv_in.weight")


def test_a_training_that_diverges_is_not_continued(photograph, tmp_path, capsys, monkeypatch):
    def diverging(*arguments, checkpoint, **options):
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(b"all but the last module")
        raise Diverged("QArtSR W4A4: loss is not finite after 8 images; use smaller rates")

    monkeypatch.setattr(METHODS.get("qartsr"), "build", diverging, raising=False)
    words = ["quantize", "--images", photograph.parent, "--out", tmp_path / "q", "--crops", 2, "--method", "qartsr"]
    refused(capsys, words, tmp_path / "q" / "unfinished.pt", "loss is not finite")


def test_sound_files_are_loaded(sound):
    assert load_quantized(sound / "q").name == "embedded"
