"""Saving and loading quantized backbones: the same bits, and clear errors for bad files."""

import hashlib
import json
import shutil

import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.checkpoint import load_quantized, read_description, save_quantized
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.scheme import SHARED_SETTING, QuantScheme, parse_bits, variant
from qartsr_lib.quant.states import calibrate


def rebuild(name, timestep):
    """Stands for backbones.load_backbone; other weights, so that loading has to bring the saved ones."""
    assert name == "tiny"
    return tiny_backbone(timestep, seed=99)


def quantized(scheme=SHARED_SETTING, bits="W4A4", only=("*",)):
    backbone = tiny_backbone(timestep=500)
    quantize_(backbone, scheme.at(bits, backbone.eight_bit_layers), only)
    calibrate(backbone, backbone.upscale, lq_images())
    return backbone


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    save_quantized(quantized(), folder)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A fresh copy of one W4A4 checkpoint, free to be damaged."""
    return shutil.copytree(original, tmp_path / "checkpoint")


def tensor_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize(
    ("scheme", "bits", "only"),
    [
        (SHARED_SETTING, "W4A4", ("*",)),
        (SHARED_SETTING, "W2A8", ("unet.*",)),
        (variant(SHARED_SETTING, attention_bits="a", bias_bits="w", zero_point="integer"), "W3A3", ("*",)),
        (QuantScheme(weight_granularity=PerGroup(4), weight_symmetric=True), "W4A4", ("*",)),
    ],
)
def test_round_trip_gives_the_same_bits(tmp_path, scheme, bits, only):
    backbone = quantized(scheme, bits, only)
    save_quantized(backbone, tmp_path)
    loaded = load_quantized(tmp_path, rebuild)
    for image in lq_images(2, size=7, seed=5):
        assert torch.equal(loaded.upscale(image), backbone.upscale(image))
    assert loaded.quantization == backbone.quantization and not loaded.training
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in backbone.state_dict().items()
    }


def test_description_says_what_it_is(saved):
    described = read_description(saved)
    assert (described["backbone"], described["timestep"], described["bits"]) == ("tiny", 500, "W4A4")
    assert {path.name for path in saved.iterdir()} == {"quantized.json", tensor_file(saved).name}


def test_parts_with_different_bits_are_rebuilt(tmp_path):
    backbone = tiny_backbone()
    quantize_(backbone, SHARED_SETTING.at("W8A8"), ("vae.*",))
    quantize_(backbone, SHARED_SETTING.at("W3A3"), ("unet.*",))
    calibrate(backbone, backbone.upscale, lq_images())
    save_quantized(backbone, tmp_path)
    image = lq_images(1)[0]
    assert torch.equal(load_quantized(tmp_path, rebuild).upscale(image), backbone.upscale(image))


def test_saving_again_replaces(saved):
    backbone = quantized(bits="W2A2")
    save_quantized(backbone, saved)
    image = lq_images(1)[0]
    assert len(list(saved.iterdir())) == 2
    assert torch.equal(load_quantized(saved, rebuild).upscale(image), backbone.upscale(image))


def test_interrupted_saving_keeps_the_earlier_checkpoint(saved, monkeypatch):
    image = lq_images(1)[0]
    before = load_quantized(saved, rebuild).upscale(image)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qartsr_lib.methods.checkpoint.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(quantized(bits="W2A2"), saved)
    assert torch.equal(load_quantized(saved, rebuild).upscale(image), before)


def expect_one_line(saved, message):
    with pytest.raises(QartsrError, match=message) as caught:
        load_quantized(saved, rebuild)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def edit(folder, **changes):
    path = folder / "quantized.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_truncated_tensors(saved):
    path = tensor_file(saved)
    path.write_bytes(path.read_bytes()[:-100])
    expect_one_line(saved, r"tensors-.*truncated or damaged")


def test_flipped_bit(saved):
    path = tensor_file(saved)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    expect_one_line(saved, r"tensors-.*truncated or damaged")


def test_tensors_that_are_no_safetensors(saved):
    path = tensor_file(saved)
    path.write_bytes(b"not tensors")
    edit(saved, tensors={"file": path.name, "sha256": hashlib.sha256(b"not tensors").hexdigest()})
    expect_one_line(saved, r"tensors-.*not a readable tensor file")


def test_missing_tensors(saved):
    tensor_file(saved).unlink()
    expect_one_line(saved, r"tensors-.*missing")


def test_no_checkpoint(tmp_path):
    expect_one_line(tmp_path / "nothing", r"quantized\.json: no such file")


@pytest.mark.parametrize("content", ["", "{", "\x00\xff", '{"a": 1}', "[]", "null"])
def test_damaged_description(saved, content):
    (saved / "quantized.json").write_text(content, encoding="latin-1")
    expect_one_line(saved, r"quantized\.json: not ")


def test_other_version(saved):
    edit(saved, _version=2)
    expect_one_line(saved, "format version 2, but this program reads version 1")


@pytest.mark.parametrize("key", ["backbone", "timestep", "method", "bits", "steps", "tensors"])
def test_missing_entries(saved, key):
    edit(saved, **{key: None})
    expect_one_line(saved, f"entry '{key}' is missing or damaged")


@pytest.mark.parametrize(
    "steps", [[{}], [1], [{"scheme": {"bits": "W4A4"}, "only": ["*"]}], [{"scheme": 3, "only": []}]]
)
def test_damaged_steps(saved, steps):
    edit(saved, steps=steps)
    expect_one_line(saved, "entry 'steps' is damaged")


def test_another_backbone(saved):
    with pytest.raises(QartsrError, match="does not fit the backbone 'tiny'") as caught:
        load_quantized(saved, lambda name, timestep: tiny_backbone(timestep, width=16))
    assert "\n" not in str(caught.value)


def test_another_scheme(saved):
    steps = read_description(saved)["steps"]
    steps[0]["only"] = ["unet.*"]
    edit(saved, steps=steps)
    expect_one_line(saved, "does not fit the backbone 'tiny'")


def test_unfinished_backbones_are_not_saved(tmp_path):
    with pytest.raises(QartsrError, match="not quantized"):
        save_quantized(tiny_backbone(), tmp_path)
    backbone = tiny_backbone()
    quantize_(backbone, SHARED_SETTING.at(parse_bits("W4A4")))
    with pytest.raises(QartsrError, match="not calibrated"):
        save_quantized(backbone, tmp_path)
    calibrate(backbone, backbone.upscale, lq_images())
    backbone.unet.conv_norm_out.weight.data[0] = torch.nan
    with pytest.raises(QartsrError, match="to save: unet.conv_norm_out.weight holds NaN or infinity"):
        save_quantized(backbone, tmp_path)
    assert not list(tmp_path.iterdir())
