"""Bootstrap intervals against closed forms and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qartsr_lib.study import stats


def test_agrees_with_the_normal_interval_on_a_large_sample():
    values = np.random.default_rng(1).normal(25, 3, size=3000)
    _, low, high = stats.mean_interval(values)
    margin = scipy.stats.norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = sum(
        low <= 5 <= high for _, low, high in (stats.mean_interval(generator.normal(5, 1, 40)) for _ in range(300))
    )
    assert 0.90 <= hits / 300 <= 0.98


def test_a_skewed_sample_gets_a_skewed_interval():
    values = np.random.default_rng(3).lognormal(0, 1.5, size=40)
    _, low, high = stats.mean_interval(values)
    # the percentile interval of this sample is 1.8 times as long to the right, BCa's 3.8 times
    assert high - values.mean() > 3 * (values.mean() - low)


def test_the_same_values_have_the_same_interval():
    values = np.random.default_rng(4).normal(size=20)
    assert stats.mean_interval(values) == stats.mean_interval(values)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_lies_within_the_data_and_is_ordered(values):
    _, low, high = stats.mean_interval(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_degenerate_samples():
    assert all(math.isnan(bound) for bound in stats.mean_interval([]))
    assert all(math.isnan(bound) for bound in stats.mean_interval([3.0])[1:])
    assert all(math.isnan(bound) for bound in stats.mean_interval([math.nan, 3.0])[1:])
    assert stats.mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0)


def test_percentile_takes_over_where_bca_is_undefined(recwarn):
    values = np.array([0.0] * 9 + [1e-320])
    assert np.isnan(stats._interval(values, "BCa")).any()
    _, low, high = stats.mean_interval(values)
    assert 0 <= low <= high <= 1e-320
    assert not recwarn.list


def test_missing_values_are_left_out():
    values = np.random.default_rng(6).normal(size=15)
    with_gaps = np.insert(values, [0, 4, 9], np.nan)
    assert stats.mean_interval(with_gaps) == stats.mean_interval(values)


@pytest.mark.parametrize("values", [[[1.0, 2.0]], 3.0])
def test_refuses_what_is_not_one_dimensional(values):
    with pytest.raises(ValueError, match="1-D"):
        stats.mean_interval(values)


def test_mean_interval_of_differences_is_narrower_where_photographs_differ_much():
    generator = np.random.default_rng(7)
    photographs = generator.normal(25, 4, size=30)
    a = photographs + 0.3 + generator.normal(0, 0.1, size=30)
    mean, low, high = stats.mean_interval(a - photographs)
    assert mean == pytest.approx((a - photographs).mean())
    assert 0 < low < mean < high < 0.5
    _, a_low, a_high = stats.mean_interval(a)
    assert high - low < 0.1 * (a_high - a_low)
    reverse = stats.mean_interval(photographs - a)
    assert reverse[0] == pytest.approx(-mean)
    assert reverse[1] == pytest.approx(-high, abs=0.02) and reverse[2] == pytest.approx(-low, abs=0.02)


def test_the_mean_leaves_missing_values_out():
    assert stats.mean_interval([1.0, np.nan, 3.0]) == (2.0, *stats.mean_interval([1.0, 3.0])[1:])
    assert all(math.isnan(x) for x in stats.mean_interval([np.nan]))


def test_intervals_over_fewer_than_ten_photographs_are_marked():
    assert stats.few_note(9) == stats.FEW_NOTE and stats.few_note(10) == ""


def test_holm_by_hand():
    nan = math.nan
    assert stats.holm([0.01, nan, 0.04, 0.03]) == pytest.approx([0.03, nan, 0.06, 0.06], nan_ok=True)
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
