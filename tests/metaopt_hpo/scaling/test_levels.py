"""Intervals of a law mean what their level says: they nest, and a wider level covers more."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.scaling import Estimate, Law, fit
from metaopt_hpo.scaling.fitting.floor_error import DOUBLING_ERROR, own_error
from metaopt_hpo.trials.table import TrialTable

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)


def table(seed: int, scatter: float = 0.2) -> TrialTable:
    """Cells whose optimum scatters about the law, as real ones do."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = []
    for size in (1e7, 3e7, 1e8, 3e8):
        centre = math.log(2e-3 * (size / 1e7) ** -0.3) + scatter * rng.standard_normal()
        for u in np.linspace(-1.5, 1.5, 6):
            loss = (2.0 + 60 * size**-0.3) * math.exp(0.03 * u * u + 1e-3 * rng.standard_normal())
            rows.append((size, 20 * size, 5e5, math.exp(centre + u), loss))
    return TrialTable.from_frame(pd.DataFrame(rows, columns=["size", "tokens", "batch", "lr", "loss"]))


@pytest.fixture(scope="module")
def laws() -> dict[float, Law]:
    return {level: fit(table(0), draws=60, level=level) for level in LEVELS}


@settings(max_examples=40)
@given(st.floats(7, 11), st.floats(0.3, 3.0), st.booleans())
def test_a_higher_level_contains_a_lower_one(
    laws: dict[float, Law], digits: float, ratio: float, given_batch: bool
) -> None:
    size = 10**digits
    wider: tuple[Estimate, ...] | None = None
    for level in reversed(LEVELS):
        p = laws[level].predict(size, 20 * size * ratio, 5e5 if given_batch else None)
        now = (p.lr, p.batch, p.loss)
        for narrow, wide in zip(now, wider or (), strict=False):
            assert wide.low <= narrow.low * (1 + 1e-12)
            assert narrow.high <= wide.high * (1 + 1e-12)
        wider = now


def test_a_level_is_as_wide_as_the_normal_says_where_only_scatter_speaks(laws: dict[float, Law]) -> None:
    """Inside the range the interval is mostly the cells' own scatter about the law, which is taken as normal."""

    def width(level: float) -> float:
        lr = laws[level].predict(1e8, 2e9).lr
        return math.log(lr.high / lr.low)

    z = NormalDist().inv_cdf
    for level in LEVELS:
        expected = z(0.5 + 0.5 * level) / z(0.95)
        assert 0.7 * expected < width(level) / width(0.9) < 1.4 * expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "tables"),
    [
        (0.9, 6),
        pytest.param(0.5, 24, marks=pytest.mark.sweep),
        pytest.param(0.9, 24, marks=pytest.mark.sweep),
    ],
)
def test_intervals_cover_at_their_level(level: float, tables: int) -> None:
    """A held-out cell's optimum lies in the interval about as often as its level says, or more."""
    rng = np.random.default_rng(1)
    inside = []
    for seed in range(tables):
        law = fit(table(100 + seed), draws=30, level=level)
        truth = 2e-3 * (1e9 / 1e7) ** -0.3 * math.exp(0.2 * rng.standard_normal())
        inside.append(truth in law.predict(1e9, 2e10).lr)
    error = math.sqrt(level * (1 - level) / len(inside))
    assert np.mean(inside) >= level - 2 * error


def test_each_doubling_beyond_the_fitted_sizes_leaves_the_loss_less_sure(
    make_table: Callable[..., TrialTable],
) -> None:
    law = fit(make_table(noise=2e-3), draws=20)
    size, tokens = law.domain.size[1], law.domain.tokens[1]
    inside = own_error(law.floor, law.domain, size, tokens)
    for axis, at in (
        ("size", lambda k: (2**k * size, tokens)),
        ("tokens", lambda k: (size, 2**k * tokens)),
    ):
        grown = [own_error(law.floor, law.domain, *at(k)) ** 2 - inside**2 for k in (1, 2, 4)]
        assert grown == pytest.approx([k * DOUBLING_ERROR[axis] ** 2 for k in (1, 2, 4)])
    # the interval is one run's, so that its noise counts
    p = law.predict(size, tokens)
    assert math.log(p.loss.high / p.loss.value) > 1.6 * law.noise
