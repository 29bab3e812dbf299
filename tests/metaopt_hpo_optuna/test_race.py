"""Races run real studies: every method ends, pilots are ours alone, and a race repeats."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.comparison.problems import Problem, table_problem
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna import OptunaEngine

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
        records = OptunaEngine().race(method, problem.race(3, 4.0))
        return [(r.size, r.lr, r.batch) for r, _ in zip(records, range(6), strict=False)]

    found = race()
    assert found == race()
    assert any(size != TARGET[0] for size, _, _ in found) == method.startswith("law")


def test_ours_buys_pilots_and_then_hits_the_target(problem: Problem) -> None:
    spent, excess = 0.0, []
    for record in OptunaEngine().race("law", problem.race(0, 4.0)):
        spent += record.cost / problem.unit
        excess.append(problem.excess(record))
        if np.isfinite(excess[-1]):
            break
    assert spent < 2.5
    assert excess[-1] < 0.005


def test_a_grid_ends_after_its_last_point(problem: Problem) -> None:
    points = [(r.lr, r.batch) for r in OptunaEngine().race("grid", problem.race(0, 1000.0))]
    assert len(points) == len(set(points)) > 10
