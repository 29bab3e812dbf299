"""The gain's bookkeeping: what a method is charged, when it has arrived, and that nothing is run twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.race import Problem
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.comparison.statistics import bootstrap_median, ratio_of_medians
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies import live_table
from studies.gain import races
from studies.gain.knowledge_gradient import AGAIN, KnowledgeGradient
from studies.gain.problems import live_problem, table_problem
from studies.gain.races import race_all, run
from studies.gain.replayed_law import spent
from studies.gain.smoothing import smoothed
from studies.gain.summary import LIMIT, costs, markdown, summary

TARGET = (4e6, 8e7)


def table() -> TrialTable:
    rows = []
    for n in (1e6, 2e6, 4e6):
        for d in (4e7, 8e7):
            for lr in np.geomspace(1e-3, 1e-1, 13):
                for b in np.geomspace(1e4, 1e5, 5):
                    x, y = math.log(lr / (0.01 * (n / 1e6) ** -0.4)), math.log(b / 3e4)
                    loss = (2 + (n / 1e6) ** -0.3 + (d / 1e7) ** -0.3) * math.exp(0.03 * x * x + 0.02 * y * y)
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return table_problem("toy", table(), TARGET)


class Fixed:
    """A racer that runs one pilot, a bad and a good run of the target."""

    race_methods = ("random", "tpe")
    calls = 0

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        type(self).calls += 1
        best = task.objective.grid(*task.target)  # type: ignore[attr-defined]
        yield task.objective.run(task.configuration(1e-2, cell=(1e6, 4e7), batch=3e4))
        yield task.objective.run(task.configuration(9e-2, batch=3e4), lambda t, loss: "stopped")
        yield task.objective.run(task.configuration(best.best_lr, batch=best.best_batch))
        raise AssertionError("read on after the goal")


def test_pilots_and_stopped_runs_cost_what_they_used(problem: Problem) -> None:
    rows = run(Fixed(), "random", problem, seed=0)
    assert len(rows) == 1
    assert rows[0]["excess"] == pytest.approx(0.0, abs=1e-9)
    assert rows[0]["cost"] == pytest.approx(1 / 8 + 1 / 2 + 1)
    assert rows[0]["pilots"] == pytest.approx(1 / 8)
    assert rows[0]["runs"] == 3


def test_a_search_that_is_held_is_not_repeated(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(races, "get_engine", lambda name: Fixed())
    out = tmp_path / "gain.parquet"
    Fixed.calls = 0
    first = race_all("fixed", [problem], [], 2, out)
    assert Fixed.calls == 4
    again = race_all("fixed", [problem], [], 3, out)
    assert Fixed.calls == 6
    assert len(again) == 3 * len(first) // 2
    found = summary(again)
    row: dict[str, Any] = found[(found["method"] == "random") & (found["within"] == 0.0025)].iloc[0].to_dict()
    assert row["median"] == pytest.approx(1.625)
    assert row["median_low"] == row["median_high"] == row["median"]
    assert row["ratio"] == pytest.approx(1.0)
    assert "| toy |" in markdown(found)
    with pytest.raises(EngineError, match="not magic"):
        race_all("fixed", [problem], ["magic"], 1, out)


def test_a_search_that_never_arrived_counts_as_the_limit() -> None:
    frame = pd.DataFrame(
        {
            "problem": "p",
            "engine": "e",
            "method": "tpe",
            "seed": [0, 1],
            "cost": [3.0, 40.5],
            "excess": [1e-4, 0.1],
        }
    )
    assert costs(frame, 0.0025)["tpe"].tolist() == [3.0, LIMIT]


def test_any_configuration_of_the_box_is_run_at_the_nearest_known_one() -> None:
    objective = ReplayedObjective(table())
    race = table_problem("toy", table(), TARGET).race(0, 10)
    record = objective.run(race.configuration(1e3, batch=1.0))
    assert record.lr == pytest.approx(0.1)
    assert record.batch == pytest.approx(1e4)
    assert race.rungs == (4e7,)


def test_smoothing_keeps_a_bowl_and_halves_noise() -> None:
    grid = ReplayedObjective(table()).grid(*TARGET)
    assert smoothed(grid).loss == pytest.approx(grid.loss, rel=0.02)
    rng = np.random.default_rng(0)
    noisy = type(grid)(*np.exp(grid.points.T), grid.loss * np.exp(0.01 * rng.standard_normal(grid.loss.size)))
    error, smooth = (np.std(np.log(g.loss / grid.loss)) for g in (noisy, smoothed(noisy)))
    assert smooth < 0.7 * error


def test_the_knowledge_gradient_buys_a_pilot_where_it_takes_off_more_for_its_cost() -> None:
    cheap, near = (2e6, 4e7), (3.9e6, 8e7)
    for curvature in (1e-3, 0.1):  # which cancels
        design = KnowledgeGradient({}, TARGET, 1.0, curvature=curvature)
        assert design.best_pilot((near, cheap), two=True) == cheap
        assert design.best_pilot((near,), two=False) is None
    a = np.linspace(0.0, 3.0, 3001)
    density, tail = np.exp(-a * a / 2) / math.sqrt(2 * math.pi), norm.sf(a)
    assert float(np.max(4 * a * (density - a * tail))) == pytest.approx(AGAIN, abs=1e-3)


def test_a_replay_spends_what_its_rule_of_pilots_buys(problem: Problem) -> None:
    total, pilots = spent(problem, seed=0)
    assert 0 < pilots < total < math.inf
    assert spent(problem, seed=0, method="random")[1] == 0.0


def test_the_ratio_of_medians_and_its_interval() -> None:
    ratio, low, high = ratio_of_medians([4.0] * 10, [2.0] * 10)
    assert (ratio, low, high) == (2.0, 2.0, 2.0)
    # what a seed does to both leaves no doubt about the ratio: pairs are kept together
    hard = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
    ratio, low, high = ratio_of_medians([2 * v for v in hard], hard)
    assert (ratio, low, high) == pytest.approx((2.0, 2.0, 2.0))
    low, high = bootstrap_median(hard)
    assert 1.0 < low < 4.0 < high < 13.0
    with pytest.raises(ValueError, match="equal, positive length"):
        ratio_of_medians([], [1.0])


def test_the_kept_live_table_is_a_problem_of_its_finished_seeds() -> None:
    found = live_problem(live_table.FILE)
    race = found.race(len(found.objectives), 10.0)
    assert race.objective is found.objectives[0]
    assert found.target not in found.pilots
    assert len(found.pilots) == len(live_table.PILOTS)
    assert len(race.rungs) >= 3
    record = race.objective.run(race.configuration(found.truth.best_lr, batch=found.truth.best_batch))
    assert record.cost == pytest.approx(found.unit)
    assert found.excess(record) == pytest.approx(0.0, abs=1e-9)
    pilot = race.objective.run(race.configuration(0.01, cell=found.pilots[0], batch=1024))
    assert math.isnan(found.excess(pilot))
    assert pilot.cost < found.unit / 20


@pytest.mark.parametrize("engine", ["optuna", "ray"])
def test_the_tables_of_the_docs_are_those_of_the_kept_races(engine: str) -> None:
    docs = Path(live_table.__file__).parents[1]
    found = summary(pd.read_parquet(docs / "studies" / "gain" / f"gain_{engine}.parquet"))
    text = (docs / "studies" / "gain" / "README.md").read_text(encoding="utf-8")
    for within in (0.0025, 0.01):
        assert markdown(found, within) in text
