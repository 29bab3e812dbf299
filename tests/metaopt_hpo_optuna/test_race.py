"""Races run real studies: every method ends, pilots are ours alone, and a race repeats."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.comparison.race import Problem
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna import OptunaEngine
from studies.gain.problems import table_problem

TARGET = (8e6, 8e7)


@pytest.fixture(scope="module")
def problem() -> Problem:
    rows = []
    for n in (1e6, 2e6, 4e6, 8e6):
        for lr in np.geomspace(1e-3, 1e-1, 15):
            for b in np.geomspace(1e4, 1e5, 5):
                x, y = math.log(lr / (0.02 * (n / 1e6) ** -0.4)), math.log(b / 3e4)
                loss = (2 + (n / 1e6) ** -0.3) * math.exp(0.03 * x * x + 0.02 * y * y)
                rows.append({"size": n, "tokens": 8e7, "batch": b, "lr": lr, "loss": loss})
    return table_problem("toy", TrialTable.from_frame(pd.DataFrame(rows)), TARGET)


@pytest.mark.parametrize("method", OptunaEngine().race_methods)
def test_every_method_races_and_repeats(problem: Problem, method: str) -> None:
    def race() -> list[tuple[float, float, float]]:
        records = OptunaEngine().race(method_named(method), problem.race(3, 4.0))
        return [(r.size, r.lr, r.batch) for r, _ in zip(records, range(6), strict=False)]

    found = race()
    assert found == race()
    assert any(size != TARGET[0] for size, _, _ in found) == method.startswith("law")


def test_ours_buys_pilots_and_then_hits_the_target(problem: Problem) -> None:
    best = []
    for seed in range(5):
        records = list(OptunaEngine().race(method_named("law"), problem.race(seed, 10.0)))
        first = next(i for i, r in enumerate(records) if r.size == TARGET[0])
        assert first >= 3
        assert all(r.size == TARGET[0] for r in records[first:])
        assert sum(r.cost for r in records[:first]) < 2 * problem.unit
        best.append(np.nanmin([problem.excess(r) for r in records[first:]]))
    assert np.median(best) < 0.0025


def test_a_grid_ends_after_its_last_point(problem: Problem) -> None:
    points = [(r.lr, r.batch) for r in OptunaEngine().race(method_named("grid"), problem.race(0, 1000.0))]
    assert len(points) == len(set(points)) > 10
