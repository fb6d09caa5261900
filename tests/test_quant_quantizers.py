"""Bits, granularities, range rules and the quantizer module."""

import pytest
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.granularity import PerChannel, PerGroup, PerTensor
from qartsr_lib.quant.observers import OBSERVERS
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.scheme import Bits, parse_bits


@pytest.mark.parametrize("text", ["W4A4", "w4a4", " W4A4 ", Bits(4, 4)])
def test_parse_bits(text):
    assert parse_bits(text) == Bits(4, 4)
    assert str(parse_bits(text)) == "W4A4"


def test_full_precision_bits():
    assert parse_bits("W32A32").is_full_precision
    assert not parse_bits("W4A32").is_full_precision


@pytest.mark.parametrize("text", ["W1A1", "W9A9", "W4", "abc", "", "W4A4x", "A4W4", "W4A16", "W-4A4", "W0A8"])
def test_nonsense_bits_are_refused_in_one_line(text):
    with pytest.raises(QartsrError) as caught:
        parse_bits(text)
    assert "\n" not in str(caught.value) and "bits" in str(caught.value)


WEIGHT, ACTIVATION, TOKENS = (6, 8, 3, 3), (2, 8, 5, 4), (2, 7, 8)


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        (PerTensor(), WEIGHT, ()),
        (PerChannel(), WEIGHT, (6, 1, 1, 1)),
        (PerChannel(), (6, 8), (6, 1)),
        (PerChannel(-3), ACTIVATION, (8, 1, 1)),
        (PerChannel(-1), TOKENS, (8,)),
        (PerGroup(4), WEIGHT, (6, 2, 1, 1, 1)),
        (PerGroup(4), (6, 8), (6, 2, 1)),
        (PerGroup(64), WEIGHT, (6, 1, 1, 1, 1)),
        (PerGroup(3), WEIGHT, (6, 1, 1, 1, 1)),
        (PerGroup(4, -3), ACTIVATION, (2, 1, 1, 1)),
        (PerGroup(4, -1), TOKENS, (2, 1)),
    ],
)
def test_one_parameter_per_set_of_elements(granularity, shape, expected):
    assert granularity.parameter_shape(shape) == expected
    quantizer = Quantizer(QuantizerConfig(3, granularity), shape, "layer")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quantizer.set_range_from(x)
    assert quantizer.scale.shape == expected
    assert quantizer(x).shape == x.shape
    assert (quantizer(x) - x).abs().max() <= quantizer.scale.max() / 2 + 1e-6


def test_group_is_the_channels_quantized_alone():
    """Each group of input channels behaves like a tensor of its own, for weights and activations."""
    weight = torch.randn(WEIGHT, generator=torch.Generator().manual_seed(1))
    grouped = Quantizer(QuantizerConfig(4, PerGroup(4)), WEIGHT, "layer")
    grouped.set_range_from(weight)
    for out in range(6):
        for group in range(2):
            part = weight[out, 4 * group : 4 * group + 4]
            alone = Quantizer(QuantizerConfig(4, PerTensor()), part.shape, "part")
            alone.set_range_from(part)
            assert torch.equal(grouped(weight)[out, 4 * group : 4 * group + 4], alone(part))
    tokens = torch.randn(TOKENS, generator=torch.Generator().manual_seed(2))
    grouped = Quantizer(QuantizerConfig(4, PerGroup(4, -1)), TOKENS, "layer")
    grouped.set_range_from(tokens)
    alone = Quantizer(QuantizerConfig(4), (2, 7, 4), "part")
    alone.set_range_from(tokens[..., 4:])
    assert torch.equal(grouped(tokens)[..., 4:], alone(tokens[..., 4:]))


def test_group_works_on_channels_last():
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=torch.channels_last)
    quantizer = Quantizer(QuantizerConfig(4, PerGroup(4, -3)), x.shape, "layer")
    quantizer.set_range_from(x)
    assert torch.equal(quantizer(x), quantizer(x.contiguous()))


def test_group_size_must_be_positive():
    with pytest.raises(ValueError, match="group size"):
        PerGroup(0)


@pytest.mark.parametrize(
    ("granularity", "reduced"), [(PerTensor(), (0, 1, 2, 3)), (PerChannel(-3), (0, 2, 3)), (PerChannel(0), (1, 2, 3))]
)
def test_min_max_runs_over_the_whole_set(granularity, reduced):
    batches = list(torch.randn(5, 2, 8, 4, 4, generator=torch.Generator().manual_seed(3)).unbind())
    observer = OBSERVERS.get("min-max")(granularity)
    assert observer.limits() is None
    for batch in batches:
        observer.update(batch)
    stacked = torch.stack(batches)
    dims = (0, *(dim + 1 for dim in reduced))
    lower, upper = observer.limits()
    assert torch.equal(lower.flatten(), stacked.amin(dims).flatten())
    assert torch.equal(upper.flatten(), stacked.amax(dims).flatten())


def test_first_batch_ignores_the_rest():
    observer = OBSERVERS.get("first-batch")(PerTensor())
    observer.update(torch.tensor([-1.0, 2.0]))
    observer.update(torch.tensor([-9.0, 9.0]))
    assert [limit.item() for limit in observer.limits()] == [-1, 2]


def test_observer_keeps_no_view_of_the_activation():
    observer = OBSERVERS.get("min-max")(PerChannel(-1))
    x = torch.tensor([1.0, 2.0])
    observer.update(x)
    x.fill_(7)
    assert observer.limits()[0].tolist() == [1, 2]


def test_uncalibrated_quantizer_says_so():
    quantizer = Quantizer(QuantizerConfig(4), (1, 3), "unet.conv_in (activation)")
    with pytest.raises(QartsrError, match=r"unet\.conv_in \(activation\): quantizer not calibrated"):
        quantizer(torch.zeros(1, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ranges_must_be_finite(bad):
    quantizer = Quantizer(QuantizerConfig(4), (1, 3), "unet.conv_in")
    with pytest.raises(QartsrError, match=r"unet\.conv_in: NaN or infinite"):
        quantizer.set_range_from(torch.tensor([1.0, bad]))
    assert not quantizer.calibrated


def test_state_dict_carries_the_calibration():
    config = QuantizerConfig(4, PerChannel())
    quantizer, loaded = (Quantizer(config, WEIGHT, "layer") for _ in range(2))
    x = torch.randn(WEIGHT)
    quantizer.set_range_from(x)
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.calibrated and torch.equal(loaded(x), quantizer(x))
    assert not list(quantizer.parameters())


def test_loading_an_uncalibrated_state_stays_uncalibrated():
    quantizer, loaded = (Quantizer(QuantizerConfig(4), (1, 3), "layer") for _ in range(2))
    loaded.set_range(torch.tensor(0.0), torch.tensor(1.0))
    loaded.load_state_dict(quantizer.state_dict())
    assert not loaded.calibrated


def test_stored_parameter_bits():
    assert Quantizer(QuantizerConfig(4, PerChannel()), WEIGHT, "layer").stored_parameter_bits == 6 * 2 * 16
    assert Quantizer(QuantizerConfig(4, PerTensor(), symmetric=True), WEIGHT, "layer").stored_parameter_bits == 16
