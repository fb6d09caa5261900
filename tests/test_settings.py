"""The shared setting as a factor: lists of 8-bit layers, ranges, zero-points, in every method; and how it is chosen."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import write_png
from qartsr_lib.methods import METHODS, groupwise, setting, svdquant
from qartsr_lib.methods.base import CalibratedMethod
from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import BEST, EIGHT_BIT_LISTS, IDENTITY_PATH, Setting
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.scheme import SHARED_SETTING, matches
from qartsr_lib.study.experiments import grids, sensitivity, setting_grids, settings, trials
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.results import read_measurement
from qartsr_lib.training.finetuning.losses import normalized_mse


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded-scaled", 1)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 16, 16, generator=generator) for _ in range(2)]


def test_the_identity_path_is_what_no_normalization_precedes(backbone):
    """Watched, not read: a convolution of the VAE or first of the UNet whose input no normalization or SiLU made."""
    normalized, direct = set(), set()

    def remember(module, _, output):
        normalized.add(output.data_ptr())

    def look(name):
        return lambda module, given: None if given[0].data_ptr() in normalized else direct.add(name)

    hooks, kept = [], []
    for name, module in backbone.named_modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.SiLU)):
            hooks += [
                module.register_forward_hook(remember),
                module.register_forward_hook(lambda *a: kept.append(a[2])),
            ]
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(look(name)))
    with torch.no_grad():
        backbone.upscale(torch.rand(1, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    ends = {"vae.quant_conv", "vae.post_quant_conv"}  # on PassionSR's list
    of_vae = {name for name in direct if name.startswith("vae.")} | {"unet.conv_in"}
    named = {n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Conv2d) and matches(n, IDENTITY_PATH)}
    assert named == of_vae - ends and len(named) == 9


@pytest.mark.parametrize("name", [name for name in EIGHT_BIT_LISTS if name != "sensitive"])
def test_a_list_decides_which_layers_have_eight_bits(backbone, images, name):
    built = METHODS.get("maxmin").build(backbone, "W4A4", images, eight_bit=name).backbone
    found = EIGHT_BIT_LISTS.get(name)(backbone)
    for layer in (module for module in built.modules() if isinstance(module, QuantLayer)):
        wanted = 8 if matches(layer.name, found) else 4
        assert (layer.weight_quantizer.config.bits, layer.input_quantizer.config.bits) == (wanted, wanted)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("fp", "svdquant")])  # slow to build
def test_every_method_takes_the_setting(backbone, images, method, monkeypatch):
    monkeypatch.setattr(svdquant, "GRID", 3)
    monkeypatch.setattr(groupwise, "rounded", lambda weight, *_: weight.float())  # slow, and no matter of the setting
    options = {"eight_bit": "identity-path", "ranges": "least-squares", "zero_point": "integer"}
    if METHODS.get(method).trains:
        options |= {"images": 1}
    built = METHODS.get(method).build(backbone, "W4A4", images, **options).backbone
    scheme = built.quantization.steps[0][0]
    assert (scheme.ranges, scheme.zero_point) == ("least-squares", "integer")
    assert set(IDENTITY_PATH) <= set(scheme.eight_bit_layers)
    assert torch.isfinite(built.upscale(images[0])).all()


@pytest.mark.parametrize("method", ["maxmin", "qartsr", "passionsr"])
def test_least_squares_ranges_lower_the_error_of_inputs(backbone, images, method):
    """Of an untrained network's layers, each by itself, in the middle over layers."""

    def error(ranges):
        options = {"images": 1, "rate": 1e-12} if METHODS.get(method).trains else {}
        built = METHODS.get(method).build(backbone, "W4A4", images, ranges=ranges, **options).backbone
        found = []
        for layer in (module for module in built.modules() if isinstance(module, QuantLayer)):
            x = torch.randn(2000, layer.weight.shape[1], generator=torch.Generator().manual_seed(3))
            x = x.t().reshape(1, -1, 40, 50) if layer.weight.ndim == 4 else x
            found.append((layer.input_quantizer.scale.mean(), normalized_mse(layer.quantized_input(x), x)))
        return torch.stack([scale for scale, _ in found]).median()

    assert error("least-squares") < 0.9 * error("min-max")


def test_unknown_names_are_told_in_one_line(backbone, images, home, monkeypatch):
    build = METHODS.get("maxmin").build
    with pytest.raises(QartsrError, match="unknown list of 8-bit layers 'identity'"):
        build(backbone, "W4A4", images, eight_bit="identity")
    with pytest.raises(QartsrError, match="unknown range rule"):
        build(backbone, "W4A4", images, ranges="mse")
    with pytest.raises(QartsrError, match="zero_point='whole'"):
        build(backbone, "W4A4", images, zero_point="whole")
    monkeypatch.setattr(setting, "SENSITIVE", home / "none.json")
    with pytest.raises(QartsrError, match="were not measured"):
        build(backbone, "W4A4", images, eight_bit="sensitive")


def test_a_profile_hands_its_setting_to_all_methods():
    chosen = (("eight_bit", "identity-path"), ("ranges", "least-squares"))
    profile = get_profile("study", setting=[["eight_bit", "identity-path"], ["ranges", "least-squares"]])
    for method in ("maxmin", "qartsr"):
        assert training_options(method, "W4A4", profile)[-2:] == chosen
    assert training_options("maxmin", "W4A4", get_profile("tiny")) == ()


@torch.no_grad()
def test_a_single_error_is_that_of_the_whole_network_with_one_layer_quantized(backbone, images):
    small = [image[..., :8, :8] for image in images]
    built = METHODS.get("maxmin").build(backbone, "W2A2", small).backbone
    upscaled = [backbone.prepare(image) for image in small]
    found = {(layer, part): error for layer, part, error in sensitivity.single_errors(built, upscaled, "WA", "x")}
    assert len(found) == 2 * sum(isinstance(module, QuantLayer) for module in built.modules())
    name = "vae.decoder.up_blocks.1.resnets.0.conv1"
    layer, float_layer = built.get_submodule(name), backbone.get_submodule(name)
    quantizer, weight = layer.weight_quantizer, float_layer.weight.clone()
    try:
        float_layer.weight.copy_(quantizer(weight))
        with_weight = [backbone(image) for image in upscaled]
    finally:
        float_layer.weight.copy_(weight)
    hook = float_layer.register_forward_pre_hook(lambda _, given: (layer.input_quantizer(given[0]),))
    with_input = [backbone(image) for image in upscaled]
    hook.remove()
    for part, changed in (("W", with_weight), ("A", with_input)):
        wanted = sum(float((x - backbone(y)).square().mean()) for x, y in zip(changed, upscaled, strict=True)) / 2
        assert found[name, part] == pytest.approx(wanted, rel=1e-3)


def rows(errors):
    """Of a network with layers of 10 weights, b being on the list that bounds."""
    return pd.DataFrame(
        [
            (layer, 10, "identity-path" if layer == "b" else "", quantized, ranges, error)
            for layer, pair in errors.items()
            for quantized, ranges, error in zip(
                ("W4", "A4", "W2", "A2"), ("min-max", "least-squares") * 2, pair, strict=True
            )
        ],
        columns=["layer", "weights", "on_lists", "quantized", "ranges", "error"],
    )


def test_the_sensitive_list_takes_the_largest_share_and_no_more_than_the_bound():
    found = sensitivity.choose_layers(rows({"a": (1, 1, 1, 1), "b": (1, 2, 1, 2), "c": (3, 3, 3, 3)}))
    assert found == ["c"]
    both = sensitivity.choose_layers(rows({"a": (9, 9, 0, 0), "b": (1, 1, 4, 4), "c": (0, 0, 6, 6)}))
    assert both == ["a"]  # 0.9 and 0 against 0.1 and 0.4 and 0 and 0.6


def test_lists_are_written_where_the_method_reads_them(home, monkeypatch):
    monkeypatch.setattr(setting, "SENSITIVE", home / "sensitive.json")
    sensitivity.write_lists(rows({"a": (1, 1, 1, 1), "b": (5, 5, 5, 5)}).assign(backbone="embedded"))
    sensitivity.write_lists(rows({"a": (5, 5, 5, 5), "b": (1, 1, 1, 1)}).assign(backbone="osediff"))
    assert json.loads((home / "sensitive.json").read_text()) == {"embedded": ["b"], "osediff": ["a"]}


def test_costs_of_a_list_in_closed_form(backbone):
    costs = sensitivity.list_costs([backbone], ["W4A4"]).set_index("list")
    layers = [m for m in backbone.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    ends = [backbone.vae.encoder.conv_in.weight, backbone.vae.decoder.conv_out.weight]
    share = sum(w.numel() for w in ends) / sum(layer.weight.numel() for layer in layers)
    assert costs.loc["first-last", "weight_bits"] == pytest.approx(4 + 4 * share)
    assert costs.loc["identity-path", "layers"] == costs.loc["passionsr", "layers"] + 9 == 15
    assert (costs["bit_operations"] > 1).all()


def test_the_best_setting_is_the_one_with_the_highest_mean_of_the_method_it_is_chosen_for():
    seen = {
        Setting(): {"qartsr": {"W4A4": (30, 20), "W2A2": (20, 10)}, "maxmin": {"W4A4": (40, 40)}},
        Setting("identity-path"): {"qartsr": {"W4A4": (31, 21), "W2A2": (20, 11)}, "maxmin": {"W4A4": (20, 20)}},
        Setting("sensitive"): {"qartsr": {"W4A4": (50, 50)}, "maxmin": {"W4A4": (50, 50)}},  # not at both widths
    }
    table = pd.DataFrame(
        [
            (method, bits, *vars(choice).values(), value)
            for choice, methods in seen.items()
            for method, widths in methods.items()
            for bits, values in widths.items()
            for value in values
        ],
        columns=["method", "bits", *settings.FACTORS, "psnr_fp"],
    )
    assert settings.best(table) == Setting("identity-path")
    assert settings.best(read_measurement("study", "settings")) == BEST, "what all later tables call the best"
    assert (
        Setting() in settings.all_settings() and len(set(settings.all_settings())) == len(settings.all_settings()) == 10
    )


def test_the_default_setting_is_the_shared_one(backbone):
    scheme = Setting().scheme(SHARED_SETTING, backbone, "W4A4")
    assert scheme == SHARED_SETTING.at("W4A4", backbone.eight_bit_layers)


def test_what_notebook_13_writes_is_part_of_a_models_question(home, monkeypatch):
    monkeypatch.setattr(setting, "SENSITIVE", home / "sensitive.json")
    sensitive, other = (("eight_bit", "sensitive"),), (("eight_bit", "first-last"),)
    found = []
    for layers in (["a"], ["a", "b"]):
        setting.SENSITIVE.write_text(json.dumps({"embedded": layers}))
        found.append(setting.measured_layers(sensitive, "embedded"))
        assert setting.measured_layers(other, "embedded") == {}
    assert found == [{"sensitive_layers": ("a",)}, {"sensitive_layers": ("a", "b")}]


@pytest.mark.parametrize("own", [{"ranges": "least-squares"}, {"zero_point": "integer"}, {"eight_bit_layers": ("a",)}])
def test_what_all_methods_share_is_no_methods_own(backbone, images, own):
    method = CalibratedMethod("mine", "Mine", replace(SHARED_SETTING, **own))
    with pytest.raises(QartsrError, match=f"a method's setting has {next(iter(own))} .*, which all methods share"):
        method.build(backbone, "W4A4", images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"setting": [["ranges", "least-square"]]},
        {"setting": [["eight_bit", "identity"]]},
        {"image_loss": "lpips_mse"},
        {"teacher": "fp16"},
    ],
)
def test_unknown_names_stop_a_grid_not_its_first_model(wrong):
    with pytest.raises(QartsrError, match="least-square|identity|lpips_mse|fp16"):
        grids.comparison_grid(replace(get_profile("smoke").for_finetuning(), **wrong))


def test_seeds_of_table_3_are_those_of_the_best_setting_on_its_last_model():
    profile = get_profile("study").for_finetuning()
    grid, last = setting_grids.setting_grid(profile), profile.fair_model
    repeated = {(e.backbone, e.timestep, e.method, e.bits, e.label) for e in grid if e.seed}
    trained = [method for method in profile.methods if METHODS.get(method).trains]
    expected = {(*last, m, b, setting_grids.setting_label(m, BEST)) for m in trained for b in ("W4A4", "W2A2")}
    assert len(set(grid)) == len(grid) and repeated == expected
    assert {e.seed for e in grid if e.seed} == set(profile.seeds) - {0}


def test_too_few_photographs_for_the_layers_are_told(tmp_path):
    """Those are from the thirteenth on; without any, sums of errors were divided by zero."""
    for number in range(2):
        write_png(tmp_path / trials.VALIDATION / f"{number}.png", torch.rand(1, 3, 128, 128))
    assert list(trials.validation_pairs(tmp_path, trials.CHOICE)) == ["0", "1"]
    with pytest.raises(QartsrError, match="BSDS500/val: holds 2 images, and 13 to 20 in order of their names"):
        sensitivity.validation_pairs(tmp_path, trials.LAYERS)
