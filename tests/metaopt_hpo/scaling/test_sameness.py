"""One notion of the same size and the same tokens: symmetric, free of order, and it ends for any numbers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaopt_hpo.scaling.sameness import SAME, all_same, at_least, group, same

positive = st.floats(1e-6, 1e18)
anything = st.floats(allow_nan=True, allow_infinity=True)


@given(anything, anything)
def test_sameness_is_symmetric_and_never_of_what_is_no_size(a: float, b: float) -> None:
    assert same(a, b) == same(b, a)
    if not (0 < a < math.inf):
        assert not same(a, b)


@given(positive, st.floats(-0.03, 0.03))
def test_the_vectorised_form_agrees(a: float, shift: float) -> None:
    b = a * (1 + shift)
    assert bool(all_same(np.array([b]), a)[0]) == same(a, b)
    assert same(a, b) == (at_least(a, b) and at_least(b, a))


@given(st.floats(1, 1e12), st.floats(1, 1e9))
def test_rounding_to_whole_steps_does_not_make_another_run(tokens: float, batch: float) -> None:
    trained = math.ceil(tokens / batch) * batch
    assert same(tokens, trained, step=batch * (1 + 1e-9))


@given(st.lists(anything, max_size=30), st.randoms())
def test_groups_end_for_any_numbers_and_do_not_depend_on_the_order(
    values: list[float], random: object
) -> None:
    array = np.array(values, dtype=float)
    order = np.random.default_rng(0).permutation(array.size)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(group(array)[order], group(array[order]))


@given(st.lists(positive, min_size=1, max_size=30))
def test_a_group_spans_no_more_than_the_tolerance(values: list[float]) -> None:
    array = np.array(values)
    grouped = group(array)
    assert (np.abs(np.log(grouped / array)) <= math.log1p(SAME) + 1e-12).all()
