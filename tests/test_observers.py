"""Range rules: least squares against a brute-force search, and what a sample keeps."""

from __future__ import annotations

import pytest
import torch

from qartsr_lib.quant.granularity import PerChannel, PerTensor
from qartsr_lib.quant.observers import OBSERVERS, SAMPLE, Sample, least_squares_range
from qartsr_lib.quant.primitives import affine_qparams, fake_quantize


def squared_error(x, lower, upper, bits):
    scale, offset = affine_qparams(lower, upper, bits)
    return float((fake_quantize(x, scale, offset, 0, 2**bits - 1) - x).square().mean())


def skewed(kind):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, generator=generator)
    return {
        "normal": normal,
        "silu": torch.nn.functional.silu(2 * normal),
        "outlier": torch.cat((normal, normal[:3] * 40)),
    }[kind]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "silu", "outlier"])
def test_no_range_of_a_fine_grid_is_better_by_more_than_two_percent(kind, bits):
    x = skewed(kind)
    low, high = x.aminmax()
    found = squared_error(x, *least_squares_range(x, low, high, bits), bits)
    middle = x.median()
    quantiles = torch.quantile(x, torch.linspace(0, 1, 400, dtype=x.dtype))
    best = min(
        squared_error(x, a, b, bits)
        for a in quantiles[quantiles <= middle][::6]
        for b in quantiles[quantiles >= middle][::6]
    )
    assert found <= 1.02 * min(best, squared_error(x, low, high, bits))


def test_values_on_a_grid_are_reproduced_exactly():
    codes = torch.arange(16).repeat(100).float()
    low, high = least_squares_range(0.25 * codes - 1.0, torch.tensor(-3.0), torch.tensor(9.0), 4)
    assert float(low) == pytest.approx(-1.0, abs=1e-5) and float(high) == pytest.approx(2.75, abs=1e-5)


def test_two_bits_of_a_normal_distribution_reach_the_known_optimum():
    """Max (1960), uniform quantizer of a unit normal: step 0.9957 and squared error 0.1188 with four levels."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
    low, high = least_squares_range(x, x.min(), x.max(), 2)
    assert float(high - low) / 3 == pytest.approx(0.9957, abs=0.01)
    assert squared_error(x, low, high, 2) == pytest.approx(0.1188, abs=0.001)


@pytest.mark.parametrize(
    "values", [torch.ones(9), torch.tensor([0.0, float("nan"), 1.0]), torch.tensor([1.0, float("inf")])]
)
def test_a_constant_or_a_broken_tensor_keeps_its_range(values):
    low, high = values.min(), values.max()
    assert torch.equal(
        torch.stack(least_squares_range(values, low, high, 4)).nan_to_num(7), torch.stack((low, high)).nan_to_num(7)
    )


def test_the_observer_fits_per_tensor_and_leaves_channels_alone():
    x = skewed("outlier").view(1, 1, -1, 1).expand(1, 2, -1, 1)
    whole = OBSERVERS.get("least-squares")(PerTensor(), 4)
    channels = OBSERVERS.get("least-squares")(PerChannel(-3), 4)
    for observer in (whole, channels):
        assert observer.limits() is None
        observer.update(x)
    low, high = whole.limits()
    assert x.min() / 5 < low < high < x.max()  # -46 and 4.1; 16 levels of a normal distribution end near 2.6
    assert channels.limits()[1].flatten().tolist() == [float(x.max())] * 2


def test_a_sample_is_bounded_and_takes_from_all_images():
    sample = Sample()
    for number in range(300):
        sample.add(torch.full((5000,), float(number)))
    values = sample.values()
    assert len(values) <= 2 * SAMPLE + 5000
    assert values.min() == 0 and values.max() >= 256 and len(values.unique()) >= 16


@pytest.mark.parametrize("width", [128, 256, 2560, 5120])
def test_of_wide_rows_several_are_kept_of_each_image(width):
    sample = Sample()
    for image in range(100):
        sample.add((1000.0 * image + torch.arange(64.0)).view(64, 1).expand(64, width))
    rows = sample.values()[:, 0]
    assert 8 <= len(rows) / len((rows // 1000).unique()) <= 16 and len(rows) * min(width, 256) <= 2 * SAMPLE + 16 * 256


def test_rows_of_a_sample_stay_whole():
    sample = Sample()
    sample.add(torch.arange(60_000.0).view(-1, 3))
    rows = sample.values()
    assert torch.equal(rows[:, 1], rows[:, 0] + 1) and torch.equal(rows[:, 2], rows[:, 0] + 2)
