"""Intervals that cover, profiles, and orders in which every prefix of a grid covers the range."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metaopt_hpo.comparison.engine import EngineError, get_engine
from metaopt_hpo.comparison.methods import available_methods, coarse_to_fine, grid_points, method, starts
from metaopt_hpo.comparison.statistics import (
    bootstrap_mean,
    mean_of_means,
    paired_difference,
)


def test_t_interval_covers_at_its_level_with_three_pairs() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        d = paired_difference(rng.normal(1.0, 1.0, 3) + 5, np.full(3, 5.0))
        hits += d.low <= 1.0 <= d.high
    assert 0.88 < hits / 2000 < 0.92


def test_one_pair_has_no_interval_and_ties_are_ties() -> None:
    one = paired_difference([2.0], [1.0])
    assert (one.mean, one.low, one.high) == (1.0, -math.inf, math.inf)
    assert not one.decided
    tie = paired_difference([1.0, 1.0], [1.0, 1.0])
    assert tie.p == 1.0
    assert not tie.decided
    for bad in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="equal, positive length"):
            paired_difference(*bad)


def test_a_mean_of_means_is_welchs_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1.0, 5), rng.normal(0.1, 4.0, 20)
    one, plain = mean_of_means([a]), paired_difference(a, np.zeros(5))
    assert (one.mean, one.low, one.high, one.p) == pytest.approx((plain.mean, plain.low, plain.high, plain.p))
    two, welch = mean_of_means([a, b]), stats.ttest_ind(a, -b, equal_var=False)
    assert two.p == pytest.approx(welch.pvalue)
    low, high = welch.confidence_interval(0.9)
    assert (two.low, two.high) == pytest.approx((low / 2, high / 2))
    assert mean_of_means([a, [1.0]]).high == math.inf
    with pytest.raises(ValueError, match="at least one group"):
        mean_of_means([])


def test_bootstrap_interval_holds_the_mean_and_repeats() -> None:
    x = np.random.default_rng(1).normal(size=50)
    low, high = bootstrap_mean(x)
    assert low < x.mean() < high
    assert (low, high) == bootstrap_mean(x)


@given(st.integers(1, 40))
def test_grid_is_log_spaced_and_every_order_is_a_permutation(count: int) -> None:
    points = grid_points(1e-4, 1e-1, count)
    assert sorted(coarse_to_fine(count)) == list(range(count))
    if count > 1:
        ordered = np.log(np.sort(points))
        assert np.allclose(np.diff(ordered), math.log(1e3) / (count - 1))
        assert math.isclose(min(points), 1e-4)
        assert math.isclose(max(points), 1e-1)


def test_starts_spread_around_the_default_low_first() -> None:
    assert list(islice(starts(1e-3), 5)) == pytest.approx([1e-3, 10**-3.5, 10**-2.5, 1e-4, 1e-2])


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'sobol'.*grid"):
        method("sobol")
    assert "law" in available_methods()
    with pytest.raises(EngineError, match="no engine 'nevergrad'"):
        get_engine("nevergrad")
