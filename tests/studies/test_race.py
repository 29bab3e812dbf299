"""What the race's table says of known trajectories, and that a race runs from its command."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.race import outcome
from studies.race.command import METHODS, race


def record(lr: float, method: str, noise: float = 0.0, **more: object) -> TrialRecord:
    fields = {"loss": 2.0 * math.exp(0.05 * math.log(lr / 3e-3) ** 2 + noise), "cost": 2.0, "size": 9.0}
    return TrialRecord(tokens=1.0, batch=1.0, lr=lr, method=method, **{**fields, **more})  # type: ignore[arg-type]


def seed(*runs: TrialRecord) -> outcome.Seed:
    (made,) = outcome.seeds_of([dataclasses.replace(r, study="seed0") for r in runs])
    return made


def test_compute_until_the_goal_counts_pilots_and_failures() -> None:
    found = seed(
        record(3e-3, "plan", size=1.0, cost=0.5, loss=0.1),
        record(3e-3, "plan"),
        record(1e-1, "grid", state="diverged", loss=math.nan),
        record(1e-2, "grid"),
        record(3.1e-3, "grid"),
    )
    assert found.best == 2.0
    assert found.reached("plan") == 1.25
    assert found.reached("grid") == 3.0
    assert found.after("plan", 1.25) == 0.0
    assert found.after("grid", 1.25) == math.inf
    assert found.after("grid", 2.0) == pytest.approx(math.expm1(0.05 * math.log(1e-2 / 3e-3) ** 2))
    assert [r.lr for _, r in found.targets("grid")] == [1e-2, 3.1e-3]


def test_a_lucky_run_moves_the_best_of_all_and_not_the_curve() -> None:
    def one(luck: float) -> outcome.Seed:
        grid = [record(3e-3 * 1.5**k, "grid") for k in (3, -3, 2, -2, 1, -1, 0)]
        return seed(record(3e-3, "plan"), *grid, record(6e-3, "tpe", noise=luck))

    seeds = [one(0.0), one(0.0), one(-0.05)]
    excess = outcome.curve(seeds)
    assert excess is not None
    assert seeds[2].reached("plan") == math.inf
    assert all(s.settled("plan", excess)[0] == 1.0 for s in seeds)
    assert excess(3e-3 * math.e) == pytest.approx(0.05, rel=0.15)
    assert seeds[0].settled("tpe", excess)[0] == math.inf
    assert outcome.curve([seed(record(3e-3, "plan"), record(1e-2, "grid"))]) is None


def test_an_empty_race_says_how_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(outcome.RaceError, match=r"studies\.race --out"):
        outcome.gather(tmp_path, tmp_path / "none.parquet", (1.0, 1.0))
    with pytest.raises(outcome.RaceError, match="there is no"):
        race(out=tmp_path, kept=tmp_path / "none.parquet", report_only=True)


def test_kept_seeds_of_the_same_target_stay_and_others_go(tmp_path: Path) -> None:
    kept = outcome.kept_seeds(outcome.KEPT, (size := 445264.0, tokens := 1048576.0))
    assert kept
    again = outcome.gather(tmp_path, outcome.KEPT, (size, tokens)).records()
    assert [(r.study, r.trial, r.loss) for r in again if r.state == "complete"] == [
        (r.study, r.trial, r.loss) for runs in kept.values() for r in runs if r.state == "complete"
    ]
    assert outcome.kept_seeds(outcome.KEPT, (2 * size, tokens)) == {}


def test_the_kept_race_is_whole() -> None:
    """Every seed has every method, and a plan whose pilots cost no more than their budget."""
    seeds = outcome.seeds_of(TrialTable.read(outcome.KEPT).records())
    for found in seeds:
        assert set(found.runs) == {outcome.PLAN, *METHODS}
        (spent, _target), *_ = found.targets(outcome.PLAN)
        assert 1.0 < spent <= 1.1501
    assert outcome.curve(seeds) is not None
    assert len(outcome.table(seeds).rows) == 1 + len(METHODS)
