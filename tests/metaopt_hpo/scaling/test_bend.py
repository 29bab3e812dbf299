"""A bend of the optimal lr: said where going straight on would cost, silent where not, kept in a law's file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metaopt_hpo.scaling import Law, fit
from studies.laws.worlds import TARGET, World

QUIET = 3e-4
"""Noise of a run, ln loss, at which twelve cells decide on a bend."""


def law_of(world: World, seed: int = 0) -> Law:
    return fit(dataclasses.replace(world, noise=QUIET).table(seed), draws=20)


def codes(law: Law, size: float, tokens: float) -> set[str]:
    return {w.code for w in law.predict(size, tokens).warnings}


@pytest.mark.parametrize("bend", [0.1, -0.1])
def test_a_costly_bend_is_said_at_the_target_and_the_law_abstains_there(bend: float) -> None:
    law = law_of(World("bent", lr=lambda n: bend * n * n))
    assert "bend" in codes(law, *TARGET)
    assert "bend" not in codes(law, 1.2e8, 6e9)  # inside the fitted range nothing is carried on
    assert (
        law.verdict(size=TARGET[0], tokens=TARGET[1], lr=1e-3, batch=1e6, incumbent=3.0).action == "abstain"
    )


def test_a_straight_law_is_not_doubted() -> None:
    laws = [law_of(World("straight"), seed) for seed in range(3)]
    assert sum("bend" in codes(law, *TARGET) for law in laws) == 0


def test_its_cost_grows_with_the_distance_and_the_curvature() -> None:
    law = law_of(World("bent", lr=lambda n: 0.1 * n * n))
    assert law.bend is not None
    near, far = (law.bend.cost(law.surface, law.axes.design(n, 2e10)) for n in (1e9, 1e10))
    assert 0 < near < far
    sharper = dataclasses.replace(law.surface, h=2.0 * np.asarray(law.surface.h))
    assert law.bend.cost(sharper, law.axes.design(1e9, 2e10)) == pytest.approx(2 * near)


def test_it_survives_the_law_s_file() -> None:
    law = law_of(World("bent", lr=lambda n: 0.1 * n * n))
    assert codes(Law.from_json(law.to_json()), *TARGET) == codes(law, *TARGET)
