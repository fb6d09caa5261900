"""The method seam, full precision and MaxMin."""

import copy

import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import METHODS, MethodResult
from qartsr_lib.methods.checkpoint import load_quantized, save_quantized
from qartsr_lib.methods.maxmin import PARTS
from qartsr_lib.quant.layers import QuantLayer

LABELS = {
    "fp": "FP",
    "maxmin": "MaxMin",
    "maxmin-encoder": "MaxMin [encoder only]",
    "maxmin-unet": "MaxMin [UNet only]",
    "maxmin-decoder": "MaxMin [decoder only]",
}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def images():
    return lq_images(3)


def error(result, backbone):
    image = lq_images(1, seed=9)[0]
    return (result.backbone.upscale(image) - backbone.upscale(image)).square().mean().item()


def test_registered_with_their_table_names():
    assert {name: METHODS.get(name).label for name in METHODS if name in LABELS} == LABELS
    assert all(METHODS.get(name).name == name for name in METHODS)


def test_full_precision_returns_the_backbone(backbone, images):
    result = METHODS.get("fp").build(backbone, "W32A32", images)
    assert result.backbone is backbone
    assert (result.w_bits_effective, result.steps) == (32, 0)
    assert not result.report.quantized.any()
    with pytest.raises(QartsrError, match="bits 'W4A4': method 'fp' is W32A32"):
        METHODS.get("fp").build(backbone, "W4A4", images)


@pytest.mark.parametrize("name", ["maxmin", "maxmin-unet"])
def test_quantizes_a_copy(backbone, images, name):
    before = copy.deepcopy(backbone.state_dict())
    result = METHODS.get(name).build(backbone, "W4A4", images)
    assert isinstance(result, MethodResult) and result.steps == 0
    assert not any(isinstance(module, QuantLayer) for module in backbone.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())
    output = result.backbone.upscale(images[0])
    assert output.shape == (1, 3, 32, 32) and output.isfinite().all()
    stages = result.backbone.stages(result.backbone.prepare(images[0]))
    assert stages.z_h.shape == stages.eps.shape


def test_error_grows_as_bits_fall(backbone, images):
    errors = [error(METHODS.get("maxmin").build(backbone, bits, images), backbone) for bits in ("W8A8", "W4A4", "W2A2")]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 1e-3


def test_parts_are_disjoint_and_together_the_whole_network(backbone, images):
    parts = [METHODS.get(name).build(backbone, "W4A4", images).report for name in PARTS]
    whole = METHODS.get("maxmin").build(backbone, "W4A4", images).report
    quantized = sum(part.set_index("name").quantized.astype(int) for part in parts)
    assert (quantized == whole.set_index("name").quantized.astype(int)).all() and quantized.max() == 1


def test_unet_only_leaves_the_vae_alone(backbone, images):
    result = METHODS.get("maxmin-unet").build(backbone, "W2A2", images)
    rows = result.report
    assert (rows.quantized == rows["name"].str.startswith("unet.")).all()
    unet, vae = rows[rows.quantized], rows[~rows.quantized]
    assert (vae.weight_stored_bits == 32 * vae.weights).all()
    expected = (unet.weight_stored_bits.sum() + 32 * vae.weights.sum()) / rows.weights.sum()
    assert result.w_bits_effective == pytest.approx(expected)
    upscaled = backbone.prepare(images[0])
    with torch.no_grad():
        assert torch.equal(result.backbone.encode(upscaled), backbone.encode(upscaled))


def test_effective_bits_exceed_the_nominal_ones(backbone, images):
    assert 4 < METHODS.get("maxmin").build(backbone, "W4A4", images).w_bits_effective < 32


def test_activation_ranges_are_those_of_the_float_network(backbone, images):
    """The input range of one layer, taken by a hook on the float network over all images."""
    seen = []
    handle = backbone.unet.mid_block.resnets[0].conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for image in images:
        backbone.upscale(image)
    handle.remove()
    result = METHODS.get("maxmin").build(backbone, "W4A4", images)
    quantizer = result.backbone.unet.mid_block.resnets[0].conv1.input_quantizer
    low, high = min(x.min().item() for x in seen), max(x.max().item() for x in seen)
    assert quantizer.zero_point.item() == low
    assert quantizer.scale.item() == pytest.approx((high - low) / 15)


def test_knobs_change_the_output(backbone, images):
    method = METHODS.get("maxmin")
    image = lq_images(1, seed=9)[0]
    plain = method.build(backbone, "W3A3", images).backbone.upscale(image)
    for knob in ({"bias_bits": "w"}, {"attention_bits": "a"}, {"ranges": "first-batch"}, {"zero_point": "integer"}):
        assert not torch.equal(method.build(backbone, "W3A3", images, **knob).backbone.upscale(image), plain), knob
    default = {"bias_bits": 8, "attention_bits": "none", "ranges": "min-max", "zero_point": "real"}
    assert torch.equal(method.build(backbone, "W3A3", images, **default).backbone.upscale(image), plain)


def test_same_images_same_bits(backbone, images):
    first, second = (METHODS.get("maxmin").build(backbone, "W4A4", images, seed=seed) for seed in (0, 1))
    assert torch.equal(first.backbone.upscale(images[0]), second.backbone.upscale(images[0]))


def test_saves_and_loads_with_its_name(backbone, images, tmp_path):
    result = METHODS.get("maxmin").build(backbone, "W4A4", images)
    save_quantized(result.backbone, tmp_path)
    loaded = load_quantized(tmp_path, lambda name, timestep: tiny_backbone(timestep, seed=7))
    assert loaded.quantization.method == "maxmin"
    assert torch.equal(loaded.upscale(images[0]), result.backbone.upscale(images[0]))


@pytest.mark.parametrize("name", ["fp", "maxmin"])
def test_full_precision_bits_change_nothing(backbone, name):
    result = METHODS.get(name).build(backbone, "W32A32", [])
    assert error(result, backbone) == 0 and result.w_bits_effective == 32


@pytest.mark.parametrize(
    ("bits", "arguments", "message"),
    [
        ("W1A1", {}, "bits 'W1A1'"),
        ("W4A4", {"learning_rate": 1}, "method 'maxmin' has no option 'learning_rate' .known: bias_bits"),
        ("W4A4", {"ranges": "median"}, "unknown range rule 'median'"),
        ("W4A4", {"calibration_images": []}, "calibration images: none given"),
        ("W4A4", {"calibration_images": [torch.zeros(3, 8, 8)]}, r"calibration image 0: shape \(3, 8, 8\)"),
        ("W4A4", {"calibration_images": [torch.full((1, 3, 8, 8), torch.nan)]}, "NaN or infinite"),
    ],
)
def test_wrong_input_gives_one_clear_line(backbone, images, bits, arguments, message):
    arguments = {"calibration_images": images, **arguments}
    with pytest.raises(QartsrError, match=message) as caught:
        METHODS.get("maxmin").build(backbone, bits, **arguments)
    assert "\n" not in str(caught.value)


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(QartsrError, match="unknown method 'maxmni'; did you mean 'maxmin'"):
        METHODS.get("maxmni")
