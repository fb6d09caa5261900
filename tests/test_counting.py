"""Parameters and operations: exact integers, torch's own counter, the paper's Table 2, and real quantized models."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.base import Method
from qartsr_lib.quant.apply import quantize_, report
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.study.experiments import counting
from qartsr_lib.study.experiments.counting import honest
from qartsr_lib.study.experiments.counting.trace import torch_operations, trace
from qartsr_lib.study.paper import paper_table

BITS = ["W8A8", "W6A6", "W4A4", "W3A3", "W2A2"]
SIZE = 32


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def full_size():
    return counting.counted("OSEDiff")


@pytest.fixture(scope="module")
def small():
    model = tiny_backbone()
    return model, trace(model, SIZE)


def test_full_size_has_exactly_the_published_parameters(full_size):
    model, layers = full_size
    vae = model.vae
    assert parameters(model.unet) == 865_910_724
    assert parameters(vae.encoder, vae.quant_conv) == 34_163_664
    assert parameters(vae.decoder, vae.post_quant_conv) == 49_490_199
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    columns = ["weights", "biases", "other_parameters"]
    by_part = layers.groupby("part")[columns].sum().sum(axis=1)
    assert dict(by_part) == {"UNet": 865_910_724, "VAE encoder": 34_163_664, "VAE decoder": 49_490_199}
    assert layers.loc[layers["weights"] > 0].groupby("part").size().to_dict() == {
        "UNet": 282,
        "VAE encoder": 32,
        "VAE decoder": 40,
    }


@pytest.mark.slow
def test_full_size_operations_are_torchs(full_size):
    model, layers = full_size
    assert 2 * int(layers["macs"].sum()) == torch_operations(model, counting.OUTPUT_SIZE)


def test_operations_are_torchs_on_small_networks(small):
    model, layers = small
    assert 2 * int(layers["macs"].sum()) == torch_operations(model, SIZE)
    model, layers = counting.counted("embedded")
    assert 2 * int(layers["macs"].sum()) == torch_operations(model, counting.OUTPUT_SIZE)


def test_where_the_cost_sits(full_size):
    parts = counting.by_block("OSEDiff")
    sums = parts.groupby("part")[["weights_M", "layer_ops_G", "attention_ops_G"]].sum()
    share = 100 * sums / sums.sum()
    assert share.loc["UNet", "weights_M"] == pytest.approx(91.2, abs=0.1)
    assert 100 - share.loc["UNet", "layer_ops_G"] == pytest.approx(84.0, abs=0.1)
    assert sums["layer_ops_G"].sum() == pytest.approx(4240.66, abs=0.01)
    assert sums["attention_ops_G"].sum() == pytest.approx(2 * 97.39, abs=0.01)
    assert list(parts["block"]) == [name for name, _ in full_size[0].blocks_in_order()]


def test_elementwise_operations_of_a_known_block(small):
    """conv_norm_out and its activation in the UNet: 7 and 3 operations per element; conv_out adds a bias."""
    _, layers = small
    rows = layers.set_index(["name", "kind"])["elementwise"]
    elements = 8 * 16 * 16  # channels and latent of the stand-in
    assert rows["unet.conv_norm_out", "other"] == 7 * elements
    assert rows["unet.conv_act", "other"] == 3 * elements
    assert rows["unet.conv_out", "Conv2d"] == 4 * 16 * 16


def test_attention_products_are_counted_by_hand(small):
    """One head of 8 channels over 16 x 16 latents in the VAE's middle: two products of 256 x 256 x 8."""
    layers = small[1]
    row = layers[(layers["name"] == "vae.encoder.mid_block.attentions.0") & (layers["kind"] == "attention")]
    assert int(row["macs"].iloc[0]) == 2 * 256 * 256 * 8


def test_rule_paper_reproduces_table_2(full_size):
    rows = counting.paper_rows(full_size[1], BITS).set_index("bits")
    printed = paper_table(2).set_index("bits")
    for bits, params in (("W4A4", 121.70), ("W3A3", 91.99), ("W2A2", 62.41)):
        assert rows.loc[bits, "params_M"] == pytest.approx(params, abs=0.1)
        assert rows.loc[bits, "ops_G"] == pytest.approx(printed.loc[bits, "ops_G"], abs=1)
        for name in ("params_reduction_pct", "ops_reduction_pct"):
            assert rows.loc[bits, name] == pytest.approx(printed.loc[bits, name], abs=0.1)
    assert rows.loc["W32A32", "params_M"] == pytest.approx(1302.55, abs=0.01)
    assert rows.loc["W32A32", "ops_G"] == pytest.approx(4240.66 + 46.51, abs=0.01)
    assert counting.branch_parameters(full_size[1]) == 5_146_533


def test_full_precision_residual_adds_up(full_size):
    table = counting.full_precision_residual(full_size[1]).set_index("what")
    for column in ("params_M", "ops_G"):
        assert table.loc["printed - counted", column] + table.loc["counted", column] == table.loc["printed", column]
    assert abs(table.loc["left unexplained", "ops_G"]) < 0.01 * 4523
    assert abs(table.loc["left unexplained", "params_M"]) < 0.5


def linear_macs(model: torch.nn.Module, given: torch.Tensor) -> int:
    """Of linear layers and convolutions alone, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(given)
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(getattr(torch.ops.aten, name), 0) for name in ("mm", "addmm", "convolution")) // 2


@pytest.mark.slow
def test_companions_are_transformers_own():
    from transformers import CLIPTextConfig, CLIPTextModel, SwinConfig, SwinModel

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        tower = CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **shape))
        options = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
        encoder = SwinModel(SwinConfig(image_size=384, **options))
    assert parameters(tower) == counting.TEXT_TOWER_PARAMETERS
    assert linear_macs(tower, torch.zeros(1, 77, dtype=torch.long, device="meta")) == counting.TEXT_TOWER_MACS
    assert linear_macs(encoder, torch.empty(1, 3, 384, 384, device="meta")) == counting.TAGGER_MACS


def test_companions_by_hand():
    """A layer of width d has 12 d^2 weights; Swin's stages have a quarter of the tokens and twice the width."""
    width, layers, tokens = 1024, 24, 77
    biases_and_norms = layers * (4 + 4 + 1 + 4) * width + 2 * width
    embeddings = (49408 + tokens) * width
    assert layers * 12 * width**2 + biases_and_norms + embeddings == counting.TEXT_TOWER_PARAMETERS
    assert tokens * layers * 12 * width**2 == counting.TEXT_TOWER_MACS
    total = 96**2 * 192 * 3 * 4**2
    for stage, depth in enumerate((2, 2, 18, 2)):
        tokens, width = 96**2 // 4**stage, 192 * 2**stage
        total += tokens * 2 * width**2 * (stage > 0)  # merging: four halves of the width into one
        total += depth * tokens * 12 * width**2
    assert total == counting.TAGGER_MACS


@pytest.mark.parametrize("name", ["maxmin", "passionsr", "svdquant", "qartsr", "efficientdm"])
def test_honest_storage_is_that_of_a_real_quantized_model(small, name):
    """Counted on the meta device = quant.apply.report of the model with its values, bit for bit."""
    model, layers = small
    method = METHODS.get(name)
    real = copy.deepcopy(model)
    real_report = quantize_(real, method.scheme().at("W4A4", model.eight_bit_layers))
    bare = copy.deepcopy(model).to("meta")
    pd.testing.assert_frame_equal(
        quantize_(copy.deepcopy(bare), method.scheme().at("W4A4", model.eight_bit_layers)), real_report
    )
    parts = honest.components(bare, layers, [name], ["W8A8", "W4A4"])
    counted = parts.loc[parts["bits"] == "W4A4", "params_M"].sum() * 32e6
    norms = 32 * int(layers["other_parameters"].sum())
    assert round(counted) == int(real_report["stored_bits"].sum()) + norms


@pytest.mark.parametrize(("name", "options"), [("maxmin", {}), ("maxmin@first-last", {"eight_bit": "first-last"})])
def test_honest_storage_of_a_built_model(small, name, options):
    """What a method's `build` returns is what was counted without it."""
    model, layers = small
    built = METHODS.get("maxmin").build(model, "W2A2", lq_images(), **options)
    parts = honest.components(model, layers, [name], ["W2A2"]).query("bits == 'W2A2'").set_index("component")
    assert set(parts["method"]) == {"MaxMin [first-last]" if options else "MaxMin"}
    weights = int(layers["weights"].sum())
    stored = parts["params_M"].sum() * 32e6 - 32 * int(layers["other_parameters"].sum())
    assert round(stored - int(built.report["bias_stored_bits"].sum())) == round(built.w_bits_effective * weights)
    assert built.report["stored_bits"].sum() == report(built.backbone)["stored_bits"].sum()


def test_honest_baseline_and_branches(small):
    model, layers = small
    parts = honest.components(model, layers, ["maxmin", "lsq", "qartsr"], ["W4A4"])
    full = parts[parts["bits"] == "W32A32"].set_index("component")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert full["params_M"].sum() == pytest.approx(total / 1e6, rel=1e-12)
    everything = 2 * layers["macs"].sum() + layers["elementwise"].sum()
    assert full["ops_G"].sum() == pytest.approx(everything / 1e9, rel=1e-12)
    values = parts.set_index(["method", "component"])
    for column in ("params_M", "ops_G"):
        plain = values.loc["MaxMin", column]
        pd.testing.assert_series_equal(plain, values.loc["LSQ", column])
        assert plain[honest.BRANCHES] == 0 < values.loc["QArtSR", column][honest.BRANCHES]
    assert values.loc["MaxMin", "ops_G"][honest.ATTENTION] == full["ops_G"][honest.ATTENTION]


def test_honest_branch_operations_by_hand(small):
    """Rank r in every layer: 2 r (c_in k k + c_out) per output position, one addition per output, at 16 bits."""
    model, layers = small
    parts = honest.components(model, layers, ["qartsr-ranks"], ["W4A4"]).query("bits == 'W4A4'").set_index("component")
    expected = 0
    for row in layers[layers["weights"] > 0].itertuples():
        fan_in = row.weights // row.out_channels
        rank = min(4, fan_in, row.out_channels)
        expected += 2 * rank * (fan_in + row.out_channels) * row.outputs // row.out_channels + row.outputs
    assert parts.loc[honest.BRANCHES, "ops_G"] == pytest.approx(expected * 16 / 32 / 1e9, rel=1e-12)


def test_a_method_without_a_scheme_says_so(small):
    class Silent(Method):
        name = label = "silent"

        def build(self, *_, **__):
            raise NotImplementedError

    with pytest.raises(QartsrError, match="'silent' has no scheme"):
        Silent().scheme()
    with pytest.raises(QartsrError, match="unknown method 'nosuch'"):
        honest.components(*small, ["nosuch"], ["W4A4"])
    with pytest.raises(QartsrError, match="unknown network"):
        counting.counted("nosuch")


def test_a_module_that_is_not_called_is_told(small):
    model = copy.deepcopy(small[0])
    model.unet.register_module("unused", torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="a module was not called"):
        trace(model, SIZE)


def test_table_of_results_and_figures(home, monkeypatch, small):
    """The stand-in in the place of the full-size network: files, columns, order, figures."""
    model, layers = small
    monkeypatch.setattr(counting, "counted", lambda name: (model, layers))
    counting._components.cache_clear()
    methods, bits = ["maxmin", "qartsr-ranks"], ["W4A4", "W2A2"]
    table = counting.measure_table2("smoke", methods, bits)
    table.write("table2", by=(), front=())
    path = paths.results_dir("smoke") / "table2.csv"
    written = pd.read_csv(path)
    assert list(written.columns[:7]) == [
        "rule",
        "method",
        "bits",
        "params_M",
        "params_reduction_pct",
        "ops_G",
        "ops_reduction_pct",
    ]
    assert list(written["rule"].unique()) == ["paper", "honest"]
    assert len(written) == 3 + 1 + 4
    honest_rows = written[(written["rule"] == "honest") & (written["method"] == "MaxMin")]
    assert list(honest_rows["bits"]) == ["W4A4", "W2A2"]
    assert written["params_residual_M"].notna().sum() == 3 + 1 + 2
    table.write("table2", by=(), front=())
    assert pd.read_csv(path).equals(written), "written twice is written once"
    parts, components = counting.measure_parts("smoke"), counting.measure_components("smoke", methods, bits)
    parts.write("table2_parts", by=("model",), front=())
    sections = reports.table2_sections(
        table.table, counting.full_precision_residual(layers), parts.table, components.table
    )
    assert [len(section) for _, section in sections][:2] == [3, 5]
    blocks = figures.cost_by_block(parts.table[parts.table["model"] == "OSEDiff"])
    assert len(blocks.axes[0].patches) == len(model.blocks_in_order())
    chosen = components.table[components.table["method"] == "MaxMin"]
    assert len(figures.cost_components(chosen, table.table, bits).axes) == 2
    counting._components.cache_clear()
