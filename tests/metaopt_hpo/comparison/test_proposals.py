"""What every engine's searches propose and spend: the same, whoever runs the trials."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, settled
from metaopt_hpo.comparison.proposals import Spending, points_of

sys.path.insert(0, str(Path(__file__).parent))
from toy import Parabola

TOKENS, SIZE = 1e6, 1e4
ONE = 6 * SIZE * TOKENS


def task(runs: float, seed: int = 0) -> SearchTask:
    return SearchTask(
        objective=Parabola(),
        size=SIZE,
        tokens=TOKENS,
        batch=256.0,
        lr_bounds=(1e-3, 1e-1),
        budget=runs * ONE,
        seed=seed,
    )


def test_a_grid_has_as_many_points_as_the_budget_pays_for() -> None:
    points = points_of(method("grid"), task(5))
    assert points is not None
    lrs = [points.at(made, ()) for made in range(6)]
    assert lrs[5] is None
    assert sorted(x for x in lrs if x)[:: len(lrs) - 2] == pytest.approx([1e-3, 1e-1])


def test_random_points_are_a_function_of_seed_and_number() -> None:
    points, again, other = (points_of(method("random"), task(5, seed)) for seed in (0, 0, 1))
    assert points is not None
    assert again is not None
    assert other is not None
    assert points.at(3, ()) == again.at(3, ()) != other.at(3, ())
    assert all(1e-3 <= (points.at(i, ()) or 0) <= 1e-1 for i in range(50))


def test_a_self_tuning_method_goes_from_start_to_start_and_a_samplers_is_the_frameworks() -> None:
    points = points_of(method("metaoptimize"), task(5))
    assert points is not None
    assert points.strategy == "metaoptimize"
    assert len({points.at(i, ()) for i in range(5)}) == 5
    assert points_of(method("tpe"), task(5)) is None


def test_a_budget_is_kept_whatever_runs_and_what_is_stopped_early_pays_for_others() -> None:
    spending = Spending(task(2))
    for key in ("a", "b"):
        assert spending.bears(0.01)
        spending.begin(key, 0.01)
    assert not spending.bears(0.01)
    spending.end("a", 0.5 * ONE)
    assert not spending.bears(None)
    spending.end("b", 0.5 * ONE)
    assert spending.bears(None)
    assert spending.running == 0
    done = Configuration(size=SIZE, tokens=TOKENS, batch=256.0, lr=0.01).record(
        tokens=TOKENS, loss=3.0, cost=1.5 * ONE
    )
    assert not Spending(task(2), [done]).bears(0.01)


def test_a_run_without_a_finite_loss_has_diverged() -> None:
    configuration = Configuration(size=SIZE, tokens=TOKENS, batch=256.0, lr=0.01, options={"warmup": 0.1})
    record = configuration.record(tokens=5e5, loss=math.inf)
    assert (record.target_tokens, record.params) == (TOKENS, {"warmup": 0.1})
    assert settled(record).state == "diverged"
    assert settled(configuration.record(tokens=5e5, loss=math.nan, state="failed")).state == "failed"
