"""What every registered method must do; a new one is tested here by being registered."""

import copy
import re
from pathlib import Path

import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.layer import inference_form
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.images.metrics import METRICS, MetricSpec
from qartsr_lib.methods import METHODS, lsgquant, svdquant
from qartsr_lib.methods.base import CalibratedMethod
from qartsr_lib.methods.checkpoint import load_quantized, save_quantized
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import QuantState, quant_modules
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES

QUANTIZING = [name for name in METHODS if name != "fp"]
TRAINED = [name for name in QUANTIZING if isinstance(METHODS.get(name), TrainedMethod)]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def images():
    return lq_images(4)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """The stand-in's images need no trained encoder, its layers no fine grid; they are noise, and hardly differ."""
    monkeypatch.setitem(IMAGE_LOSSES._entries, "vae-features+mse", lambda device: torch.nn.functional.mse_loss)
    monkeypatch.setattr(svdquant, "GRID", 3)
    monkeypatch.setattr(svdquant, "REFINEMENTS", 2)
    monkeypatch.setattr(lsgquant, "FROZEN", -1.0)
    monkeypatch.setattr(lsgquant, "LIGHT", 0.0)


_built = {}


def build(name, backbone, bits, crops, **options):
    """A model; one without options of its own is built once for all tests, which do not change it."""
    key = (name, bits)
    if options or key not in _built:
        result = METHODS.get(name).build(backbone, bits, crops, **({"images": 16} if name in TRAINED else {}) | options)
        if options:
            return result
        _built[key] = result
    return _built[key]


def difference(result, backbone, image):
    return float((result.backbone.upscale(image) - backbone.upscale(image)).square().mean())


@pytest.mark.parametrize("name", QUANTIZING)
def test_converts_a_copy_and_counts_its_bits(name, backbone, images):
    before = copy.deepcopy(backbone.state_dict())
    result = build(name, backbone, "W4A4", images)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert result.report.quantized.any() and 4 < result.w_bits_effective < 32
    assert result.steps == (16 if name in TRAINED else 0)
    assert all(module.state is QuantState.QUANTIZED for module in quant_modules(result.backbone))
    assert not any(parameter.requires_grad for parameter in result.backbone.parameters())


@pytest.mark.parametrize("name", QUANTIZING)
def test_eight_bits_stay_close_to_full_precision(name, backbone, images):
    image = lq_images(1, seed=9)[0]
    few = {"images": 4} if name in TRAINED else {}
    high, low = (difference(build(name, backbone, bits, images, **few), backbone, image) for bits in ("W8A8", "W2A2"))
    assert high < 1e-3 and high < low


@pytest.mark.parametrize("name", QUANTIZING)
def test_same_seed_same_bits(name, backbone, images):
    first, second = (build(name, backbone, "W4A4", images, **seed).backbone for seed in ({}, {"seed": 0}))
    assert torch.equal(first.upscale(images[0]), second.upscale(images[0]))
    for (name, tensor), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name  # what files hold, used or not


@pytest.mark.parametrize("name", ["maxmin", "lsq"])
def test_the_callers_random_numbers_go_on(name, backbone, images):
    torch.manual_seed(3)
    METHODS.get(name).build(backbone, "W4A4", images, seed=1, **({"images": 1} if name in TRAINED else {}))
    found = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(4))


@pytest.mark.parametrize("name", QUANTIZING)
def test_saves_and_loads_bit_equal(name, backbone, images, tmp_path):
    result = build(name, backbone, "W4A4", images)
    save_quantized(result.backbone, tmp_path)
    loaded = load_quantized(tmp_path, lambda _, timestep: tiny_backbone(timestep, seed=7))
    assert loaded.quantization.method == name
    assert torch.equal(loaded.upscale(images[0]), result.backbone.upscale(images[0]))


@pytest.mark.parametrize("name", QUANTIZING)
def test_wrong_arguments_get_one_clear_line(name, backbone, images):
    for arguments, message in (
        (("W4A4", []), "calibration images: none given"),
        (("W4A4", [torch.zeros(3, 8, 8)]), "calibration image 0: shape"),
        (("W4A4", [torch.zeros(1, 3, 0, 8)]), "calibration image 0: shape"),
        (("W4A4", [*images, 255 * images[0]]), f"calibration image {len(images)}: torch.float32, .* from 0 to 1"),
        (("W4A4", [(255 * images[0]).byte()]), "calibration image 0: torch.uint8, .* from 0 to 1"),
        (("W1A4", images), "W1A4"),
        (("W4A4", [images[0], torch.full_like(images[0], torch.nan)]), "NaN or infinite values; check the weights"),
    ):
        with pytest.raises(QartsrError, match=message):
            METHODS.get(name).build(backbone, *arguments)
    with pytest.raises(QartsrError, match=f"method {name!r} has no option 'colour'"):
        METHODS.get(name).build(backbone, "W4A4", images, colour="red")


@pytest.mark.parametrize("name", TRAINED)
def test_training_brings_it_closer_to_full_precision(name, backbone, images, budgets=(40, 80, 240)):
    """Each phase's loss falls over a longer run, and so does the distance to the full-precision images."""
    start = build(name, backbone, "W4A4", images, images=1, rate=1e-9)
    fast = 2e-3 / max(rate for _, rate in METHODS.get(name).rates)
    for budget in budgets:  # many phases share it, and a short one's losses are mostly chance
        trained = build(name, backbone, "W4A4", images, images=budget, rate=fast)
        losses = [record["loss"] for record in trained.history if record["phase"] == trained.history[-1]["phase"]]
        if len(losses) > 2 * len(images):
            break
    assert sum(losses[-len(images) :]) < sum(losses[: len(images)])
    before, after = (sum(difference(r, backbone, image) for image in images) for r in (start, trained))
    assert after < before


@pytest.mark.parametrize("name", TRAINED)
def test_options_are_checked(name, backbone, images):
    wrong = {"images": (0,), "batch": (1.5,), "rate": (-1.0, float("inf"), True), "image_loss": ("beauty", 3)}
    for option, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(QartsrError, match=f"{option}|beauty|unknown image loss 3"):
            METHODS.get(name).build(backbone, "W4A4", images, **{option: value})


@pytest.mark.parametrize("name", TRAINED)
def test_the_whole_budget_is_spent(name, backbone, images):
    for batch, passed in ((1, 10), (4, 12)):
        result = build(name, backbone, "W4A4", images, images=10, batch=batch)
        assert result.history[-1]["images"] == passed == batch * len(result.history) == result.steps


@pytest.mark.parametrize(
    "options", [{"loss": "sum"}, {"loss": ["both"]}, {"order": "backwards"}, {"rpq": 1.5}, {"rpq": "0.5"}]
)
def test_qartsr_options(backbone, images, options):
    with pytest.raises(QartsrError, match="choose"):
        build("qartsr", backbone, "W4A4", images, **options)


def test_qartsr_spends_its_shares_in_reverse_order(backbone, images):
    plan = METHODS.get("qartsr").phases(backbone, 100, 0, rpq=0.5, order="reverse", loss="both")
    assert sum(phase.images for phase in plan[:-1]) == 50 == plan[-1].images
    assert plan[0].blocks[-1] == "vae.decoder.conv_out" and plan[-2].blocks[0] == "vae.encoder.conv_in"
    assert [term.quantity for term in plan[0].terms] == ["features", "image"]
    assert [term.quantity for term in plan[-1].terms] == ["image"] and plan[-1].blocks == ()
    only_et = METHODS.get("qartsr").phases(backbone, 100, 0, rpq=0.0, order="reverse", loss="both")
    assert len(only_et) == 1 and set(only_et[0].blocks) == {name for name, _ in backbone.blocks_in_order()}


def test_passionsr_goes_part_by_part_in_inference_order(backbone):
    plan = METHODS.get("passionsr").phases(backbone, 60, 0)
    assert [phase.images for phase in plan] == [10] * 6
    assert [phase.kinds for phase in plan] == [("transformation",), ("bounds",)] * 3
    assert [phase.terms[0].quantity for phase in plan] == ["features", "features", "noise", *["features"] * 3]
    assert plan[0].blocks[0] == "vae.encoder.conv_in" and plan[-1].trained[-1] == "vae.decoder.conv_out"


def test_the_readmes_worked_example(backbone, images):
    """The code block of the README is a whole method: registered, trained module by module, and spends its budget.

    The tests that the README names beside it pass, the one on training above all.
    """
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "METHODS.register" in block]
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        result = METHODS.get("reversed-lsq").build(backbone, "W4A4", images, images=30, batch=1)
        test_training_brings_it_closer_to_full_precision("reversed-lsq", backbone, images, budgets=(120,))
    finally:
        METHODS._entries.pop("reversed-lsq", None)
    assert result.history[-1]["images"] == 30 and result.history[-1]["phase"] > 5
    assert result.backbone.quantization.method == "reversed-lsq"


@pytest.mark.parametrize(
    "name, options, losses",
    [
        ("qartsr", {}, "image loss vae-features+mse"),
        ("lsq", {}, "image loss vae-features+mse"),
        ("qartsr", {"rpq": 1.0, "loss": "module"}, "squared errors of modules"),
        ("q-dm", {}, "squared errors of z_L, noise and image"),
        ("efficientdm", {}, "squared errors of z_L, noise and image"),
        ("passionsr", {}, "squared errors of z_L, noise, z_H and image"),
    ],
)
def test_the_note_names_the_losses(name, options, losses, backbone, images):
    assert build(name, backbone, "W4A4", images, images=16, **options).note.startswith(f"trained by {losses}")


@pytest.mark.parametrize("name", ["qartsr", "q-dm"])
def test_a_large_network_is_held_once_with_the_same_result(name, backbone, images, monkeypatch):
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    expected = build(name, backbone, "W4A4", images, images=4).backbone
    monkeypatch.setattr("qartsr_lib.training.finetuning.engine.LARGE", 0)
    found = build(name, backbone, "W4A4", images, images=4).backbone
    for wanted, state in ((expected.state_dict(), found.state_dict()), (before, backbone.state_dict())):
        assert all(torch.equal(tensor, state[key]) for key, tensor in wanted.items())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    own = {id(parameter) for parameter in backbone.parameters()}
    weights = [module.weight for module in quant_modules(found) if hasattr(module, "weight")]
    shared = [id(weight) in own for weight in weights]
    assert all(shared) if name == "qartsr" else not any(shared)
    assert not any(id(parameter) in own for parameter in expected.parameters())


def test_a_bfloat16_teacher_is_named_and_nearly_the_same(backbone, images):
    full = build("qartsr", backbone, "W4A4", images, images=16)
    half = build("qartsr", backbone, "W4A4", images, images=16, teacher="bfloat16")
    assert "teacher in bfloat16" in half.note and "teacher" not in full.note
    losses = [[record["loss"] for record in result.history] for result in (full, half)]
    assert losses[0] != losses[1] and sum(losses[0]) == pytest.approx(sum(losses[1]), rel=0.1)
    with pytest.raises(QartsrError, match="option teacher='int8'"):
        build("qartsr", backbone, "W4A4", images, images=16, teacher="int8")


@pytest.mark.parametrize("name", QUANTIZING)
def test_the_inference_form_computes_the_same(name, backbone, images):
    """Also what a method's own layers add must be said in `inference_parts`."""
    model = build(name, backbone, "W4A4", images).backbone
    exported = inference_form(model)
    assert not quant_modules(exported)
    assert torch.equal(exported.upscale(images[0]), model.upscale(images[0]))


@pytest.mark.parametrize("name", QUANTIZING)
def test_a_packed_file_has_the_bits_of_its_model(name, backbone, images, tmp_path):
    result = build(name, backbone, "W4A4", images)
    packed = save_packed(result.backbone, tmp_path / "model.safetensors")
    loaded = load_packed(tmp_path / "model.safetensors")
    assert torch.equal(loaded.upscale(images[0]), packed.upscale(images[0]))
    assert loaded.name == backbone.name and loaded.timestep == backbone.timestep


def test_what_is_wrong_with_an_entry_is_told_when_it_is_registered():
    label = METHODS.get("maxmin").label
    for name, method, told in (
        ("mine", CalibratedMethod("other", "Mine", SHARED_SETTING), "'mine' cannot be registered: it calls itself"),
        ("mine", CalibratedMethod("mine", label, SHARED_SETTING), "its label 'MaxMin' is that of 'maxmin'"),
    ):
        with pytest.raises(QartsrError, match=told):
            METHODS.register(name)(method)
    for spec, told in (
        (MetricSpec("mae", "FR", False, "", dict), "'MAE' cannot be registered: it calls itself 'mae'"),
        (MetricSpec("MAE", "fr", False, "", dict), "kind 'fr' is neither 'FR' nor 'NR'"),
    ):
        with pytest.raises(QartsrError, match=told):
            METRICS.register("MAE")(spec)
    assert "mine" not in METHODS and "MAE" not in METRICS
