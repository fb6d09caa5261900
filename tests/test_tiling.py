"""Tiles cover, their weights add up to one, and what they blend is the whole where the function is local."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qartsr_lib.tiling import blended, starts, windows


@given(st.integers(1, 300), st.integers(2, 100), st.data())
def test_partition_of_unity(size, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    total = torch.zeros(size, dtype=torch.float64)
    for start, weights in windows(size, tile, overlap):
        assert len(weights) == min(tile, size) and float(weights.min()) > 0
        total[start : start + len(weights)] += weights
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_starts_are_the_released_scripts():
    """Stride 64, the last tile shifted to end at the border (OSEDiff's defaults, 96 and 32)."""
    assert starts(96, 96, 32) == [0]
    assert starts(97, 96, 32) == [0, 1]
    assert starts(200, 96, 32) == [0, 64, 104]
    with pytest.raises(ValueError, match="overlap 96"):
        starts(200, 96, 96)


@pytest.mark.parametrize("scale", [Fraction(1), Fraction(8), Fraction(1, 8)])
def test_pointwise_functions_do_not_notice(scale):
    def resized(x):
        return F.interpolate(x, scale_factor=float(scale), mode="nearest") * 3 + 1

    x = torch.rand(2, 3, 200, 168)
    assert torch.allclose(blended(resized, x, 64, 16, scale), resized(x), atol=1e-6)


def test_one_tile_is_the_function_itself():
    calls = []
    x = torch.rand(1, 3, 8, 8)
    assert blended(lambda part: calls.append(part) or part, x, 8, 4) is x and calls[0] is x


def test_sides_that_do_not_fit_the_scale():
    with pytest.raises(ValueError, match="do not fit the scale"):
        blended(lambda x: x, torch.rand(1, 3, 100, 64), 32, 9, Fraction(1, 8))
