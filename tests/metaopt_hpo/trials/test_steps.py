"""Steps are tokens, grow with them, and fit a 32-bit column whatever a run sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt_hpo.trials.record import token_grid
from metaopt_hpo.trials.steps import EXACT, STEP_MAX, step_of, tokens_of


@given(st.integers(0, EXACT))
def test_a_step_is_a_token_count(tokens: int) -> None:
    assert step_of(tokens) == tokens
    assert tokens_of(tokens) == tokens


@given(st.floats(1, 1e19), st.floats(1, 1e19))
def test_steps_grow_with_tokens_and_fit(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= step_of(low) <= step_of(high) <= STEP_MAX


@given(st.floats(1, 1e19))
def test_tokens_come_back(tokens: float) -> None:
    assert tokens_of(step_of(tokens)) == pytest.approx(tokens, rel=1e-3, abs=0.5)


def test_points_of_the_grid_stay_apart() -> None:
    grid = token_grid(1e13, start=1e6, max_points=1000)
    assert len({step_of(t) for t in grid}) == len(grid)
