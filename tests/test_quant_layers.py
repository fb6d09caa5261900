"""Quantized Linear and Conv2d, their states and their weight cache."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.granularity import PerChannel, PerGroup, PerTensor
from qartsr_lib.quant.layers import LayerConfig, QuantConv2d, QuantLinear
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.scheme import SHARED_SETTING
from qartsr_lib.quant.states import QuantState, calibrate, in_state


def config(w=4, a=4, bias=8, activations=None, **options):
    return LayerConfig(
        QuantizerConfig(w, PerChannel(), **options),
        QuantizerConfig(a, activations or PerTensor(), **options),
        None if bias is None else QuantizerConfig(bias, PerTensor(), **options),
    )


def conv(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Conv2d(4, 6, 3, padding=1, **options).eval().requires_grad_(False)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(8, 5).eval().requires_grad_(False)


def calibrated_conv(layer_config=None, x=None, **options):
    layer = QuantConv2d.from_float(conv(**options), layer_config or config(), "conv")
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)) if x is None else x
    calibrate(layer, layer, [x])
    return layer, x


def torch_fake_quantize(x, bits, channels=None):
    """Integer zero-point over min/max by torch's own operators."""
    levels = 2**bits - 1
    flat = x.reshape(1, -1) if channels is None else x.flatten(1)
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
    scale = (high - low) / levels
    zero_point = (-low / scale).round().clamp(0, levels).int()
    if channels is None:
        return torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point.item(), 0, levels)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, 0, levels)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_conv_is_the_composition_of_torchs_operators(bits):
    source = conv()
    layer, x = calibrated_conv(config(bits, bits, 8, zero_point="integer"))
    expected = F.conv2d(
        torch_fake_quantize(x, bits),
        torch_fake_quantize(source.weight, bits, 0),
        torch_fake_quantize(source.bias, 8),
        padding=1,
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8), (2, 7, 8)])
def test_linear_is_the_composition_of_torchs_operators(shape):
    source = linear()
    layer = QuantLinear.from_float(source, config(zero_point="integer"), "linear")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    calibrate(layer, layer, [x])
    expected = F.linear(
        torch_fake_quantize(x, 4), torch_fake_quantize(source.weight, 4, 0), torch_fake_quantize(source.bias, 8)
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_true_zero_after_fake_quantization():
    """Inputs of 10 to 11 have no zero on their grid; the padding must still be 0, not 10."""
    x = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(7)) + 10
    layer, _ = calibrated_conv(config(w=8, a=2), x=x)
    quantized_input = layer.input_quantizer(x)
    assert quantized_input.min() >= 10
    weight, bias = layer.quantized_parameters()
    torch.testing.assert_close(layer(x), F.conv2d(F.pad(quantized_input, (1, 1, 1, 1)), weight, bias))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"bias": False}, {"padding_mode": "reflect"}]
)
def test_eight_bits_are_near_full_precision_for_every_geometry(options):
    layer, x = calibrated_conv(config(8, 8), **options)
    expected = conv(**options)(x)
    assert layer(x).shape == expected.shape
    assert (layer(x) - expected).abs().max() < 0.05
    with in_state(layer, QuantState.FULL_PRECISION):
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("activations", [PerChannel(), PerGroup(2)])
def test_finer_activations_use_the_channel_axis(activations):
    layer, x = calibrated_conv(config(activations=activations))
    assert layer.input_quantizer.scale.shape[0] == {PerChannel: 4, PerGroup: 2}[type(activations)]
    dense = QuantLinear.from_float(linear(), config(activations=activations), "linear")
    tokens = torch.randn(2, 7, 8)
    calibrate(dense, dense, [tokens])
    assert dense(tokens).shape == (2, 7, 5)
    assert dense(tokens[0]).shape == (7, 5)


def test_weights_are_shared_not_copied():
    source = conv()
    layer = QuantConv2d.from_float(source, config(), "conv")
    assert layer.weight is source.weight and layer.bias is source.bias
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_conversion_draws_no_random_numbers():
    source = conv()
    before = torch.get_rng_state()
    QuantConv2d.from_float(source, config(), "conv")
    assert torch.equal(torch.get_rng_state(), before)


def test_uncalibrated_layer_names_itself():
    layer = QuantConv2d.from_float(conv(), config(), "vae.encoder.conv_in")
    with pytest.raises(QartsrError, match=r"vae\.encoder\.conv_in \(activation\): quantizer not calibrated"):
        layer(torch.zeros(1, 4, 6, 6))


def test_weight_only_needs_no_calibration():
    layer = QuantConv2d.from_float(conv(), SHARED_SETTING.at("W4A32").layer_config("conv"), "conv")
    x = torch.randn(1, 4, 6, 6)
    expected = F.conv2d(x, layer.weight_quantizer(layer.weight), layer.bias_quantizer(layer.bias), padding=1)
    assert torch.equal(layer(x), expected)


def test_nan_weight_is_named():
    source = conv()
    source.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(QartsrError, match=r"conv \(weight\): NaN or infinite"):
        QuantConv2d.from_float(source, config(), "conv")


# ---- cache -------------------------------------------------------------------------------------


@pytest.fixture
def counted():
    """A calibrated layer, an input, and a list that grows with every quantization of its weight."""
    layer, x = calibrated_conv()
    calls = []
    layer.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    return layer, x, calls


def test_weight_is_quantized_once_without_gradients(counted):
    layer, x, calls = counted
    with torch.no_grad():
        first, second = layer(x), layer(x)
    with torch.inference_mode():
        layer(x)
    assert len(calls) == 1
    assert torch.equal(first, second)
    assert torch.equal(layer(x), first)  # with gradients: computed anew, same bits


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight_quantizer.set_range_from(layer.weight * 2),
        lambda layer: layer.load_state_dict({key: value * 2 for key, value in layer.state_dict().items()}),
        lambda layer: layer.to(memory_format=torch.channels_last),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2, requires_grad=False)),
        lambda layer: layer.train().eval(),
        lambda layer: layer.set_state(QuantState.QUANTIZED),
        lambda layer: layer.drop_cache(),
    ],
    ids=["in-place edit", "new range", "load", "move", "new parameter", "training", "state", "drop_cache"],
)
@torch.no_grad()
def test_cache_follows_every_change(counted, change):
    layer, x, calls = counted
    layer(x)
    change(layer)
    after = layer(x)
    assert len(calls) == 2
    layer.drop_cache()
    assert torch.equal(layer(x), after)


@torch.no_grad()
def test_training_quantizes_every_time(counted):
    layer, x, calls = counted
    layer.train()
    layer(x), layer(x)
    assert len(calls) == 2


def test_tensors_of_inference_mode_which_count_no_edits_are_not_cached(counted):
    layer, x, *_ = counted
    with torch.inference_mode():
        layer = copy.deepcopy(layer)
        before = layer(x)
        layer.weight.mul_(0.5)
        assert not torch.equal(layer(x), before)


@torch.no_grad()
def test_copies_carry_no_cache(counted):
    layer, x, _ = counted
    layer(x)
    assert copy.deepcopy(layer)._cache is None
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_gradients_reach_weight_and_input():
    layer, x = calibrated_conv()
    layer.weight.requires_grad_(True)
    x.requires_grad_(True)
    layer(x).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and x.grad.abs().sum() > 0
    assert layer.weight.grad.isfinite().all()


# ---- states ------------------------------------------------------------------------------------


def two_layers():
    layer, x = calibrated_conv()
    other = QuantConv2d.from_float(conv(1), config(), "other")
    return nn.ModuleList([layer, other]), x


def _calibrate(model, forward):
    calibrate(model, lambda _: forward(), [None])


def _in_full_precision(model, forward):
    with in_state(model, QuantState.FULL_PRECISION):
        forward()


@pytest.mark.parametrize("run", [_in_full_precision, _calibrate])
def test_states_come_back_after_an_exception(run):
    model, x = two_layers()
    model[1].set_state(QuantState.FULL_PRECISION)
    scale = model[0].input_quantizer.scale.clone()

    def stopped():
        model[0](x * 100)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run(model, stopped)
    assert [layer.state for layer in model] == [QuantState.QUANTIZED, QuantState.FULL_PRECISION]
    assert torch.equal(model[0].input_quantizer.scale, scale)
    model[0].input_quantizer.observe(x * 100)  # calibration is over: nothing is recorded
    assert model[0].input_quantizer.stop_observing() is None


def test_states_nest():
    model, _ = two_layers()
    with in_state(model, QuantState.FULL_PRECISION):
        with in_state(model[0], QuantState.QUANTIZED):
            assert [layer.state for layer in model] == [QuantState.QUANTIZED, QuantState.FULL_PRECISION]
        assert model[0].state is QuantState.FULL_PRECISION
    assert model[0].state is QuantState.QUANTIZED


def test_calibration_sees_full_precision_and_the_whole_set():
    first, second = conv(0), nn.Conv2d(6, 2, 1).eval()
    model = nn.Sequential(
        QuantConv2d.from_float(first, config(2, 2), "a"), QuantConv2d.from_float(second, config(2, 2), "b")
    )
    inputs = [torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    calibrate(model, model, inputs)
    seen = torch.cat([first(x) for x in inputs])
    quantizer = model[1].input_quantizer
    assert torch.equal(quantizer.zero_point, seen.min())
    torch.testing.assert_close(quantizer.scale, (seen.max() - seen.min()) / 3)


def test_a_second_calibration_starts_afresh():
    layer, x = calibrated_conv()
    calibrate(layer, layer, [x * 0.1])
    torch.testing.assert_close(layer.input_quantizer.zero_point, (x * 0.1).min())


def test_non_finite_activations_change_nothing():
    model, x = two_layers()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(QartsrError, match=r"other \(activation\): NaN or infinite"):
        _calibrate(model, lambda: (model[0](x * 3), model[1](x * torch.nan)))
    assert torch.equal(model[0].input_quantizer.scale, before["0.input_quantizer.scale"])
    assert not model[1].input_quantizer.calibrated
    assert model[0].state is QuantState.QUANTIZED
