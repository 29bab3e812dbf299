"""What the race's table says of known trajectories, and that a race runs from its command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from metaopt_hpo.trials.record import TrialRecord
from studies.race import outcome
from studies.race.command import race


def record(loss: float, cost: float = 2.0, method: str = "grid", state: str = "complete") -> TrialRecord:
    return TrialRecord(
        size=1.0, tokens=1.0, batch=1.0, lr=1e-3, loss=loss, cost=cost, method=method, state=state
    )  # type: ignore[arg-type]


def test_compute_until_the_goal_counts_what_failed_too() -> None:
    runs = [record(3.0), record(math.nan, state="diverged"), record(2.0), record(1.0)]
    trajectory = outcome._trajectory(runs, unit=2.0)
    assert trajectory == [(1.0, 3.0), (2.0, 3.0), (3.0, 2.0), (4.0, 1.0)]
    assert outcome.reached(trajectory, 2.0) == 3.0
    assert outcome.reached(trajectory, 0.5) == math.inf


def test_a_plans_pilots_cost_and_do_not_count_as_reached() -> None:
    runs = [record(0.1, cost=0.5, method="pilot"), record(2.0, method="target")]
    assert outcome._trajectory(runs, unit=2.0, counts="target") == [(0.25, math.inf), (1.25, 2.0)]


def test_an_empty_race_says_how_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(outcome.RaceError, match=r"studies\.race --out"):
        outcome.table(tmp_path)
    with pytest.raises(outcome.RaceError):
        race(out=tmp_path, report_only=True)
