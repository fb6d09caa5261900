"""One calibration for all bit widths: the same ranges as calibrating each time, with fewer passes."""

from weakref import WeakKeyDictionary

import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.methods import METHODS
from qartsr_lib.quant import states
from qartsr_lib.quant.quantizers import Quantizer


@pytest.fixture
def counted(monkeypatch):
    """A backbone, and the number of its (and its copies') calibration passes so far."""
    backbone, passes = tiny_backbone(), []
    plain = type(backbone).upscale
    monkeypatch.setattr(type(backbone), "upscale", lambda self, lq: passes.append(1) or plain(self, lq))
    return backbone, passes


@pytest.mark.parametrize("name", ["maxmin", "maxmin-unet"])
@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W2A2"])
def test_stored_ranges_give_the_same_model(counted, bits, name, monkeypatch):
    backbone, passes = counted
    images = lq_images(3)
    METHODS.get("maxmin").build(backbone, "W6A6", images)
    passes.clear()
    stored = METHODS.get(name).build(backbone, bits, images).backbone
    assert not passes
    monkeypatch.setattr(states, "_RANGES", WeakKeyDictionary())
    expected = METHODS.get(name).build(backbone, bits, images).backbone.state_dict()
    assert len(passes) == 3
    actual = stored.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in actual)


def test_other_images_rules_and_backbones_are_calibrated_anew(counted):
    backbone, passes = counted
    build = METHODS.get("maxmin").build
    build(backbone, "W4A4", lq_images(2))
    for other, images, options in (
        (backbone, lq_images(2, seed=5), {}),
        (backbone, lq_images(2), {"ranges": "first-batch"}),
        (backbone, lq_images(2), {"attention_bits": 8}),
        (tiny_backbone(seed=3), lq_images(2), {}),
    ):
        passes.clear()
        build(other, "W4A4", images, **options)
        assert len(passes) == 2


def test_quantized_attention_products_leave_the_plain_ranges_alone(counted):
    backbone, _ = counted
    images = lq_images(2)
    before = METHODS.get("maxmin").build(backbone, "W3A3", images).backbone.state_dict()
    METHODS.get("maxmin").build(backbone, "W3A3", images, attention_bits="a")
    after = METHODS.get("maxmin").build(backbone, "W3A3", images).backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_quantizer_that_observes_in_its_own_way_gets_its_own_ranges(counted, monkeypatch):
    backbone, passes = counted
    images, build = lq_images(2), METHODS.get("maxmin").build
    plain = build(backbone, "W4A4", images).backbone.state_dict()

    class Halved(Quantizer):
        def observe(self, x):
            super().observe(x / 2)

    monkeypatch.setattr("qartsr_lib.quant.layers.QuantLayer.input_quantizer_type", Halved)
    passes.clear()
    halved = build(backbone, "W4A4", images).backbone.state_dict()
    assert len(passes) == 2
    name = next(key for key in plain if key.endswith("input_quantizer.scale"))
    torch.testing.assert_close(halved[name], plain[name] / 2)
    monkeypatch.undo()
    after = build(backbone, "W4A4", images).backbone.state_dict()
    assert all(torch.equal(plain[key], after[key]) for key in plain), "nor do others get its ranges"
