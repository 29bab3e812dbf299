"""The proxy's checks: they hold on exponents planted from it and fail on others."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt_hpo.attribution import Plane, proxy_checks
from metaopt_hpo.theory.intervals import interval


def plane(x, y, slope, spread=0.02):
    rng = np.random.default_rng(0)
    samples = np.array([x, y]) + spread * rng.standard_normal((501, 2))
    loss = slope + spread * rng.standard_normal(501)
    samples[0], loss[0] = (x, y), slope
    e = [interval(float(v[0]), v[1:]) for v in (samples[:, 0], samples[:, 1], loss)]
    return Plane(e[0], e[1], interval(0.0, np.zeros(3)), 0.0, e[2], samples, loss)


@pytest.mark.parametrize(("s", "r"), [(0.15, 0.0), (1 / 3, 1 / 3), (0.6, 0.4)])
def test_planted_proxy_passes_every_check(s, r):
    checks = proxy_checks(plane(-(s + r) / (1 + s + r), 0.5, -s / (1 + s + r)), source=s, capacity=r)
    assert len(checks) == 5
    assert all(c.holds for c in checks)


def test_each_check_can_fail():
    assert not any(c.holds for c in proxy_checks(plane(-0.5, 0.8, -0.3), source=0.15, capacity=0.0))


def test_checks_without_known_exponents():
    names = [c.name for c in proxy_checks(plane(-0.3, 0.5, -0.2))]
    assert names == ["y = 1/2", "gap at b = 0.82 minus gap at b = 0"]
    assert [c.name for c in proxy_checks(plane(-0.3, 0.5, -0.3), capacity=0.0)][-1] == "x + α_D"
    with pytest.raises(ValueError, match="needs source too"):
        proxy_checks(plane(-0.3, 0.5, -0.2), capacity=0.3)
