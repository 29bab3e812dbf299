"""Where the target is run again: where no run so far would be good, and where losses say that the optimum lies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaopt_hpo.scaling.forms.surface import Surface
from metaopt_hpo.scaling.policy.covering import lattice, posterior, uncovered
from metaopt_hpo.scaling.policy.design import GOOD_LOSS

BOWL = Surface(np.zeros(1), np.zeros(1), np.array([0.02, 0.0, 0.02]), 0.0, True)
REACH = math.sqrt(2 * GOOD_LOSS / 0.02)
NONE = np.zeros((0, 2))


@pytest.mark.parametrize("two", [False, True])
def test_the_first_run_is_at_the_optimum_and_the_next_beyond_its_reach(two: bool) -> None:
    shifts = lattice(0.6, two=two)
    p = posterior(shifts, BOWL, NONE, np.zeros(0), 0.6, 2e-3)
    first = uncovered(shifts, p, BOWL, NONE)
    assert math.hypot(*first) < 0.2
    made = np.array([first])
    for _ in range(2):  # also while nothing is known of the loss of those made
        point = uncovered(shifts, p, BOWL, made)
        assert np.hypot(*(made - point).T).min() > 0.9 * REACH
        made = np.vstack([made, point])


@pytest.mark.parametrize("truth", [-1.0, 0.0, 1.0])
def test_losses_draw_the_next_run_towards_the_optimum(truth: float) -> None:
    shifts = lattice(0.6, two=False)
    at = np.array([[0.0, 0.0], [0.6, 0.0], [-0.6, 0.0]])
    z = 0.7 + BOWL.excess(at[:, 0] - truth, at[:, 1])
    p = posterior(shifts, BOWL, at, z, 0.6, 5e-4)
    assert float(p @ shifts[:, 0]) == pytest.approx(truth, abs=0.2)
    x, _ = uncovered(shifts, p, BOWL, NONE)
    assert abs(x - truth) < REACH
