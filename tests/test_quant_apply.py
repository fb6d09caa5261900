"""quantize_, the scheme's rules, the report and effective bits."""

import json
from dataclasses import replace

import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.apply import quantize_, report, w_bits_effective
from qartsr_lib.quant.attention import QuantAttnProcessor
from qartsr_lib.quant.granularity import PerChannel, PerGroup
from qartsr_lib.quant.layers import LAYER_KINDS, QuantConv2d, QuantLayer, QuantLinear
from qartsr_lib.quant.scheme import SHARED_SETTING, Bits, QuantScheme, variant
from qartsr_lib.quant.states import QuantState, calibrate, in_state

W4A4 = SHARED_SETTING.at("W4A4")


class Net(nn.Module):
    """A hand-countable network: conv 3->4, linear 4->5 without bias, and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


# ---- report ------------------------------------------------------------------------------------


def test_report_counts_by_hand():
    rows = quantize_(Net(), SHARED_SETTING.at("W4A3", ("head",))).set_index("name")
    assert list(rows.index) == ["body.0", "head"]
    conv, head = rows.loc["body.0"], rows.loc["head"]
    assert (conv["type"], conv["shape"], conv["quantized"]) == ("QuantConv2d", "4x3x3x3", True)
    assert (conv.w_bits, conv.a_bits, conv.bias_bits) == (4, 3, 8)
    assert (conv.weights, conv.biases, conv.parameters) == (108, 4, 112)
    # 4-bit codes, 4 channels' scale and zero-point, one activation scale and zero-point
    assert conv.weight_stored_bits == 108 * 4 + 4 * 32 + 32
    assert conv.bias_stored_bits == 4 * 8 + 32
    assert conv.stored_bits == 432 + 128 + 32 + 32 + 32
    assert (head.w_bits, head.a_bits, head.bias_bits) == (8, 8, 0)
    assert (head.weights, head.biases, head.stored_bits) == (20, 0, 20 * 8 + 5 * 32 + 32)
    assert w_bits_effective(rows) == (592 + 352) / 128


def test_full_precision_is_32_bits():
    net = Net()
    rows = quantize_(net, SHARED_SETTING.at("W32A32"))
    assert w_bits_effective(rows) == 32
    assert not rows.quantized.any() and rows.bias_bits.tolist() == [32, 0]
    assert rows.stored_bits.sum() == 32 * (108 + 4 + 20)
    assert type(net.head) is nn.Linear and not hasattr(net, "quantization")


def test_part_of_the_network_counts_the_rest_as_float():
    rows = quantize_(Net(), W4A4, only=("body.*",))
    assert w_bits_effective(rows) == (592 + 20 * 32) / 128
    assert rows.quantized.tolist() == [True, False]


def test_groups_and_symmetry_change_the_count():
    scheme = QuantScheme(bits=Bits(4, 4), weight_granularity=PerGroup(2), weight_symmetric=True)
    rows = quantize_(Net(), scheme).set_index("name")
    assert rows.loc["body.0"].weight_stored_bits == 108 * 4 + 4 * 16 + 32  # 3 channels: one group each
    assert rows.loc["head"].weight_stored_bits == 20 * 4 + 5 * 2 * 16 + 32  # 4 channels: two groups


# ---- conversion --------------------------------------------------------------------------------


def test_every_layer_of_a_backbone_by_rule():
    backbone = tiny_backbone()
    before = report(backbone)
    rows = quantize_(backbone, SHARED_SETTING.at("W4A4", backbone.eight_bit_layers)).set_index("name")
    assert list(rows.index) == list(before["name"]) and rows.quantized.all()
    assert set(rows.index[rows.w_bits == 8]) == set(backbone.eight_bit_layers)
    assert set(rows.w_bits) == {4, 8} and (rows.w_bits == rows.a_bits).all()
    assert not [m for m in backbone.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    assert rows.parameters.sum() == before.parameters.sum()


def test_full_precision_state_has_the_bits_of_the_float_backbone():
    backbone, twin = tiny_backbone(), tiny_backbone()
    image = lq_images(1)[0]
    quantize_(backbone, variant(W4A4, attention_bits="a"))
    calibrate(backbone, backbone.upscale, lq_images())
    with in_state(backbone, QuantState.FULL_PRECISION):
        assert torch.equal(backbone.upscale(image), twin.upscale(image))
    assert not torch.equal(backbone.upscale(image), twin.upscale(image))


def test_part_of_a_backbone_in_full_precision():
    backbone, twin = tiny_backbone(), tiny_backbone()
    quantize_(backbone, W4A4)
    calibrate(backbone, backbone.upscale, lq_images())
    upscaled = backbone.prepare(lq_images(1)[0])
    with torch.no_grad(), in_state(backbone.vae, QuantState.FULL_PRECISION):
        ours, reference = backbone.stages(upscaled), twin.stages(upscaled)
    assert torch.equal(ours.z_l, reference.z_l)
    assert not torch.equal(ours.eps, reference.eps)


def test_quantized_weights_keep_channels_last():
    backbone = tiny_backbone()
    quantize_(backbone, W4A4)
    layer = backbone.unet.conv_in
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert layer.quantized_parameters()[0].is_contiguous(memory_format=torch.channels_last)


def test_shared_modules_stay_shared():
    net = nn.ModuleDict({"a": nn.Linear(2, 2)})
    net["b"] = net["a"]
    net["c"] = nn.Sequential(net["a"])
    rows = quantize_(net, W4A4)
    assert net["a"] is net["b"] and net["a"] is net["c"][0]
    assert type(net["a"]) is QuantLinear
    assert rows["name"].tolist() == ["a"]


def test_one_name_of_a_shared_module_is_enough():
    net = nn.ModuleDict({"a": nn.Linear(2, 2)})
    net["c"] = nn.Sequential(net["a"], nn.Linear(2, 2))
    quantize_(net, W4A4, only=["c.0"])
    assert net["a"] is net["c"][0] and type(net["a"]) is QuantLinear and type(net["c"][1]) is nn.Linear


def test_a_weight_that_is_not_finite_is_refused_in_full_precision_too():
    for kind in LAYER_KINDS:
        net = nn.Sequential(nn.Conv2d(8, 8, 3))
        net[0].weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(QartsrError, match=r"0 \(weight\): NaN or infinite values; check the weights"):
            quantize_(net, replace(SHARED_SETTING.at("W32A4"), layer_kind=kind))


def test_subclasses_are_left_alone():
    class Special(nn.Linear):
        pass

    net = nn.ModuleDict({"special": Special(2, 2), "plain": nn.Linear(2, 2)})
    rows = quantize_(net, W4A4).set_index("name")
    assert type(net["special"]) is Special
    assert rows.quantized.to_dict() == {"special": False, "plain": True}
    assert rows.loc["special"].w_bits == 32


def test_only_matching_nothing_is_an_error():
    with pytest.raises(QartsrError, match=r"only=decoder\.\*: matches no Linear or Conv2d"):
        quantize_(Net(), W4A4, only=("decoder.*",))


def test_quantizing_twice_is_an_error_in_parts_it_is_not():
    net = Net()
    quantize_(net, W4A4, only=("body.*",))
    quantize_(net, SHARED_SETTING.at("W2A2"), only=("head",))
    assert [only for _, only in net.quantization.steps] == [("body.*",), ("head",)]
    with pytest.raises(QartsrError, match=r"(body\.0|head): already quantized"):
        quantize_(net, W4A4)


def test_failed_conversion_changes_nothing():
    net = Net()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    with pytest.raises(QartsrError, match=r"head \(weight\): NaN"):
        quantize_(net, W4A4)
    assert type(net.body[0]) is nn.Conv2d and not hasattr(net, "quantization")


def test_another_layer_kind_is_one_registration():
    class SideBranch(QuantLinear):
        """Stands for later methods: one stored 16-bit number per option."""

        def _add_quantizers(self, config, name, rank=0):
            super()._add_quantizers(config, name)
            self.rank = rank

        @property
        def side_branch_bits(self):
            return 16 * self.rank

    LAYER_KINDS.register("test-side-branch")({nn.Linear: SideBranch, nn.Conv2d: QuantConv2d})
    net = Net()
    plain = quantize_(Net(), W4A4).weight_stored_bits.sum()
    scheme = QuantScheme(bits=Bits(4, 4), layer_kind="test-side-branch", layer_options=(("rank", 3),))
    assert quantize_(net, scheme, only=("head",)).set_index("name").loc["head"].weight_stored_bits == 20 * 4 + 160 + 80
    assert isinstance(net.head, SideBranch) and plain > 0


# ---- scheme ------------------------------------------------------------------------------------


def test_shared_setting_is_what_the_study_fixed():
    layer = SHARED_SETTING.at("W4A4").layer_config("any")
    assert layer.weight.granularity == PerChannel(0) and not layer.weight.symmetric and layer.weight.bits == 4
    assert layer.activation.granularity.parameter_shape((1, 8, 4, 4)) == () and not layer.activation.symmetric
    assert layer.activation.ranges == "min-max"
    assert {layer.weight.zero_point, layer.activation.zero_point, layer.bias.zero_point} == {"real"}
    assert layer.bias.bits == 8
    assert SHARED_SETTING.at("W4A4").attention_config() is None


def test_exceptions_never_quantize_what_the_scheme_leaves_float():
    scheme = SHARED_SETTING.at("W2A32", ("head",))
    assert scheme.bits_for("head") == Bits(8, 32) and scheme.bits_for("body.0") == Bits(2, 32)
    assert scheme.layer_config("head").activation is None
    assert SHARED_SETTING.at("W32A4").layer_config("x").bias is None


def test_knobs_reach_the_layers():
    base = SHARED_SETTING.at("W2A3", ("head",))
    bias = variant(base, bias_bits="w")
    assert (bias.layer_config("body").bias.bits, bias.layer_config("head").bias.bits) == (2, 8)
    assert variant(base, bias_bits="none").layer_config("body").bias is None
    assert variant(base, attention_bits="a").attention_config().bits == 3
    assert variant(base, attention_bits=6).attention_config().bits == 6
    integer = variant(base, zero_point="integer").layer_config("body")
    assert {integer.weight.zero_point, integer.activation.zero_point, integer.bias.zero_point} == {"integer"}
    first = variant(base, ranges="first-batch").layer_config("body")
    assert (first.activation.ranges, first.weight.ranges) == ("first-batch", "min-max")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"bias": 4}, "unknown option 'bias' .known: bias_bits, attention_bits, ranges, zero_point"),
        ({"bias_bits": 1}, "option bias_bits=1"),
        ({"bias_bits": "a"}, "option bias_bits='a'"),
        ({"attention_bits": True}, "option attention_bits=True"),
        ({"zero_point": "half"}, "option zero_point='half'"),
        ({"ranges": "min-mx"}, "unknown range rule 'min-mx'; did you mean 'min-max'"),
    ],
)
def test_unknown_knobs_are_refused_in_one_line(knobs, message):
    with pytest.raises(QartsrError, match=message) as caught:
        variant(SHARED_SETTING, **knobs)
    assert "\n" not in str(caught.value)


def test_scheme_survives_json():
    scheme = QuantScheme(
        Bits(3, 4), ("a.*",), PerGroup(16), True, PerChannel(), attention_bits="a", layer_options=(("rank", 2),)
    )
    assert QuantScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_attention_products_of_the_unet_only():
    backbone = tiny_backbone()
    quantize_(backbone, variant(W4A4, attention_bits="a"))
    names = [name for name, module in backbone.named_modules() if isinstance(module, QuantAttnProcessor)]
    assert names and all(name.startswith("unet.") for name in names)
    assert len(names) == len(backbone.unet.attn_processors)
    assert all(isinstance(m, QuantLayer) for m in backbone.modules() if isinstance(m, nn.Linear | nn.Conv2d))
