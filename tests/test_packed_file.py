"""Packed models: dense codes, small headers, exact round trips, and clear errors for bad files."""

import gzip
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_stand_in import lq_images, tiny_backbone
from safetensors.torch import load_file, save_file

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import Form, InferenceLayer, inference_form
from qartsr_lib.deploy.packed_file import load_packed, pack, packed_size, save_packed, unpack
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.scheme import SHARED_SETTING, variant
from qartsr_lib.quant.states import calibrate


def quantized(bits="W4A4", scheme=SHARED_SETTING, only=("*",)):
    backbone = tiny_backbone(timestep=500)
    quantize_(backbone, scheme.at(bits, backbone.eight_bit_layers), only)
    calibrate(backbone, backbone.upscale, lq_images())
    return backbone


@pytest.fixture(scope="module")
def model():
    return quantized()


@pytest.fixture
def file(model, tmp_path):
    save_packed(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def described(file, change=None):
    """The description in `file`, rewritten with `change` applied where one is given, and without its hash then."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        found = json.loads(opened.metadata()["qartsr"])
    if change is not None:
        found.pop("description_sha256")
        change(found)
        save_file(load_file(file), str(file), {"qartsr": json.dumps(found)})
    return found


@given(st.integers(2, 8), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_codes_come_back(bits, count, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8))
    stream = pack(codes, bits)
    assert len(stream) == packed_size(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(stream, bits, (count,)), codes)


def test_bytes_are_what_the_format_says():
    assert pack(torch.tensor([1, 2, 3, 0, 3], dtype=torch.uint8), 2).tolist() == [0b00_11_10_01, 0b11]
    assert pack(torch.tensor([5, 6, 1], dtype=torch.uint8), 3).tolist() == [0b01_110_101, 0b0]
    with pytest.raises(ValueError, match="code 4 does not fit in 2 bits"):
        pack(torch.tensor([4], dtype=torch.uint8), 2)


@pytest.mark.parametrize(
    ("bits", "scheme", "only"),
    [
        ("W2A2", SHARED_SETTING, ("*",)),
        ("W3A8", SHARED_SETTING, ("unet.*",)),
        ("W6A6", variant(SHARED_SETTING, attention_bits="a", bias_bits="w", zero_point="integer"), ("*",)),
    ],
)
def test_round_trip(tmp_path, bits, scheme, only):
    packed = save_packed(quantized(bits, scheme, only), tmp_path / "a.safetensors")
    loaded = load_packed(tmp_path / "a.safetensors")
    saved, found = packed.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys() and all(torch.equal(saved[key], found[key]) for key in saved)
    for image in lq_images(2, size=7, seed=5):
        assert torch.equal(loaded.upscale(image), packed.upscale(image))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_every_float_is_a_float16_and_every_code_the_nearest(model):
    packed = inference_form(model, half=True)
    for name, tensor in packed.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, tensor.half().float()), name
    layer, source = packed.unet.conv_in, model.unet.conv_in
    assert isinstance(layer, InferenceLayer)
    steps = (source.weight - layer.zero_point) / layer.scale
    assert float((layer.codes - steps).abs().max()) <= 0.5 + 2**-6  # half a step; the range's ends moved by rounding


def test_size_is_what_is_stored(file, model):
    kinds = load_file(file)
    layers = [layer for layer in load_packed(file).modules() if isinstance(layer, InferenceLayer)]
    codes = sum(packed_size(layer.codes.numel(), layer.form.weight.bits) for layer in layers)
    floats = sum(tensor.numel() for name, tensor in kinds.items() if not name.startswith("codes"))
    assert sum(tensor.numel() for name, tensor in kinds.items() if name.startswith("codes")) == codes
    assert all(tensor.dtype == torch.float16 for name, tensor in kinds.items() if not name.startswith("codes"))
    header = file.stat().st_size - codes - 2 * floats
    assert 0 < header < 4500  # under 0.3% of 1.5 MB, the smallest file of the embedded backbone


def test_forms_are_plain_data():
    form = Form(QuantizerConfig(3, PerGroup(4)), None, side_rank=2)
    assert Form.from_dict(json.loads(json.dumps(asdict(form)))) == form


def test_a_constant_channel_has_a_scale(tmp_path):
    backbone = tiny_backbone()
    backbone.unet.conv_in.weight.data[0] = 0.25
    quantize_(backbone, SHARED_SETTING.at("W2A2"))
    calibrate(backbone, backbone.upscale, lq_images())
    packed = save_packed(backbone, tmp_path / "model.safetensors")
    assert torch.equal(packed.unet.conv_in.weight()[0], torch.full_like(packed.unet.conv_in.weight()[0], 0.25))


def test_description(file):
    found = described(file)
    assert (found["backbone"], found["timestep"], found["bits"]) == ("tiny", 500, "W4A4")


def test_truncated(file):
    whole = file.read_bytes()
    for length in (0, 5, 600, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(QartsrError, match="model.safetensors: truncated or not a safetensors file"):
            load_packed(file)


@pytest.fixture
def zipped_file(model, tmp_path):
    save_packed(model, tmp_path / "zipped.safetensors.gz")
    return tmp_path / "zipped.safetensors.gz"


def test_inside_gzip_it_is_the_same_model_and_smaller(file, zipped_file, model, tmp_path):
    assert gzip.decompress(zipped_file.read_bytes()) == file.read_bytes(), "any gunzip gives the plain file"
    assert zipped_file.stat().st_size < 0.95 * file.stat().st_size
    plain, again = load_packed(file).state_dict(), load_packed(zipped_file).state_dict()
    assert plain.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in plain.items())
    save_packed(model, tmp_path / "later.safetensors.gz")
    assert (tmp_path / "later.safetensors.gz").read_bytes() == zipped_file.read_bytes(), "no time, no name"


def test_a_broken_gzip(zipped_file):
    whole = zipped_file.read_bytes()
    for broken in (b"", whole[:5], whole[:600], whole[:-1], b"PK" + whole[2:], whole[:900] + b"\0" * 40 + whole[940:]):
        zipped_file.write_bytes(broken)
        with pytest.raises(QartsrError, match="zipped.safetensors.gz: truncated or not a safetensors file"):
            load_packed(zipped_file)


def test_a_gzip_of_no_model_is_not_unpacked_to_its_end(zipped_file):
    zipped_file.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(QartsrError, match="unpacks to more than 100 times its size"):
        load_packed(zipped_file)


def test_damaged(file):
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 0x10
    file.write_bytes(whole)
    with pytest.raises(QartsrError, match="damaged"):
        load_packed(file)


def test_damaged_description(file):
    whole = file.read_bytes()
    assert whole.count(b'\\"timestep\\":500') == 1
    file.write_bytes(whole.replace(b'\\"timestep\\":500', b'\\"timestep\\":501'))
    with pytest.raises(QartsrError, match="damaged"):
        load_packed(file)


def test_missing_and_foreign(tmp_path):
    with pytest.raises(QartsrError, match="no such file"):
        load_packed(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(QartsrError, match="not a packed model"):
        load_packed(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(_version=9), "format version 9, but this program reads version 1"),
        (lambda found: found["layers"].pop(), "does not fit the networks of this version"),
        (lambda found: found["unet"].update(block_out_channels=[16, 16]), "does not fit the networks"),
        (lambda found: found.update(architecture="other"), "unknown architecture 'other'"),
        (lambda found: found.pop("forms"), "does not fit the networks"),
    ],
)
def test_a_description_that_does_not_fit(file, change, message):
    described(file, change)
    with pytest.raises(QartsrError, match=message):
        load_packed(file)


def test_what_cannot_be_saved(model, tmp_path):
    with pytest.raises(QartsrError, match="not quantized"):
        save_packed(tiny_backbone(), tmp_path / "model.safetensors")
    with pytest.raises(QartsrError, match="ends in .safetensors or .safetensors.gz"):
        save_packed(model, tmp_path / "model.bin")
    large = quantized()
    large.unet.conv_in.weight_quantizer.zero_point.fill_(1e6)
    with pytest.raises(QartsrError, match="unet.conv_in .zero_point.: a value of 1e.06 does not fit"):
        save_packed(large, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
