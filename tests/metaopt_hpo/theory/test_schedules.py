"""Schedule factors: closed forms, integrals, and the order that convex last-iterate theory gives."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from metaopt_hpo.theory.schedules import SCHEDULES, last_iterate_value, schedule_factors, shape


@pytest.mark.parametrize(
    ("schedule", "peak", "value"),
    [("constant", 1, 1), ("linear", 1.73, 1.155), ("cosine", 1.63, 1.225), ("wsd", 1.07, 1.034)],
)
def test_known_factors(schedule, peak, value):
    factors = schedule_factors(schedule)
    assert factors.peak == pytest.approx(peak, abs=5e-3)
    assert factors.value == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_moments_are_the_integrals_of_the_shape(schedule):
    u = (np.arange(200_000) + 0.5) / 200_000
    factors = schedule_factors(schedule)
    assert shape(schedule, u).mean() == pytest.approx(factors.mean, abs=1e-8)
    assert (shape(schedule, u) ** 2).mean() == pytest.approx(factors.mean_square, abs=1e-8)


def test_factors_follow_from_the_bound():
    eta, delta, slope, k, m1, m2 = sp.symbols("eta Delta Lambda K m1 m2", positive=True)
    value = delta / (eta * k * m1) + slope * eta * m2 / m1
    best = sp.solve(sp.diff(value, eta), eta)[0]
    assert sp.simplify(best - sp.sqrt(delta / (k * slope)) / sp.sqrt(m2)) == 0
    assert sp.simplify(value.subs(eta, best) - 2 * sp.sqrt(delta * slope / k) * sp.sqrt(m2) / m1) == 0


def test_last_iterate_order_at_a_thousand_steps():
    values = {s: last_iterate_value(s, 1000) for s in SCHEDULES}
    relative = {s: v / values["linear"] for s, v in values.items()}
    assert relative == pytest.approx({"constant": 1.45, "linear": 1.0, "cosine": 1.03, "wsd": 1.08}, abs=5e-3)


def test_constant_lr_pays_the_root_of_a_logarithm():
    steps = np.array([100, 1_000, 10_000])
    excess = [last_iterate_value("constant", int(k)) ** 2 * k for k in steps]
    assert np.diff(excess) == pytest.approx(np.log(10), rel=0.01)


def test_bad_input():
    with pytest.raises(ValueError, match="schedule must be one of"):
        schedule_factors("step")
    with pytest.raises(ValueError, match="steps must be at least 2"):
        last_iterate_value("linear", 1)
