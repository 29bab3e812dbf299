"""A bend, kink or step of the optimum: said where going straight on may cost, silent where not, kept in files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.cautions import WRONG
from studies.laws.worlds import TARGET, World

QUIET = 3e-4
"""Noise of a run, ln loss, at which twelve cells decide on a bend."""

BENT = World("bent", lr=lambda n: 0.1 * n * n)


def law_of(world: World, seed: int = 0) -> Law:
    return fit(dataclasses.replace(world, noise=QUIET).table(seed), draws=20)


def doubts(law: Law, size: float, tokens: float) -> set[str]:
    return {w.code for w in law.predict(size, tokens).warnings} & set(WRONG)


@pytest.mark.parametrize(
    "world",
    [
        BENT,
        World("bent down", lr=lambda n: -0.1 * n * n),
        World("kinked", lr=lambda n: 0.7 * max(n, 0.0)),
        World("another regime at the last size", lr=lambda n: 0.9 * (n > 0.8)),
        World("the batch bends", batch=lambda d: 0.12 * d * d),
        World("tokens kinked", lr_tokens=lambda d: 0.7 * max(d + 0.5, 0.0)),
    ],
    ids=lambda w: w.name,
)
def test_what_may_cost_is_said_at_the_target_and_the_law_abstains_there(world: World) -> None:
    law = law_of(world)
    assert doubts(law, *TARGET)
    run = {"size": TARGET[0], "tokens": TARGET[1], "lr": 1e-3, "batch": 1e6, "incumbent": 3.0}
    assert law.verdict(**run).action == "abstain"


def test_inside_the_fitted_range_a_bend_costs_nothing() -> None:
    assert not doubts(law_of(BENT), 1.2e8, 6e9)


def test_a_straight_law_is_not_doubted() -> None:
    laws = [law_of(World("straight"), seed) for seed in range(3)]
    assert not any(doubts(law, *TARGET) for law in laws)


def test_optima_that_scatter_are_no_bend() -> None:
    near = (4.8e8, 4e10)
    laws = [law_of(World("scattered", scatter=0.15), seed) for seed in range(3)]
    assert not any(doubts(law, *near) for law in laws)


def test_the_distance_grows_with_the_extrapolation() -> None:
    law = law_of(BENT)
    assert law.alternatives is not None
    assert law.alternatives.bent.mean() > 0.95
    spread = [
        float(np.abs(law.alternatives.distances(law.axes.design(n, 2e10))[0]).mean())
        for n in (2e8, 1e9, 1e10)
    ]
    assert spread == sorted(spread)
    assert spread[2] > 4 * spread[0]


def test_it_survives_the_law_s_file_and_a_refit() -> None:
    law = law_of(BENT)
    assert doubts(Law.from_json(law.to_json()), *TARGET) == doubts(law, *TARGET)
    again = law.refit(dataclasses.replace(BENT, noise=QUIET).table(0))
    assert doubts(again, *TARGET)


def test_a_law_of_an_older_file_falls_back_on_its_draws() -> None:
    law = dataclasses.replace(law_of(World("straight")), alternatives=None)
    assert not doubts(law, *TARGET)
    wide = dataclasses.replace(law.draws, a=law.draws.a + np.linspace(-2, 2, len(law.draws.a))[:, None])
    assert "unsure-optimum" in doubts(dataclasses.replace(law, draws=wide), *TARGET)
