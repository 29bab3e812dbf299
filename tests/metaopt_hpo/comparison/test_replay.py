"""Table objective and replay: lookups are exact, nothing is invented, costs add up."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.comparison.engine import EngineError, Racer, get_engine
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError
from metaopt_hpo.comparison.race import PlainRacer, problem_of, racer_of
from metaopt_hpo.comparison.replay import METHODS, replay
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import base_of
from metaopt_hpo.trials.table import TrialTable

TARGET = (3e8, 3e10)


def _table() -> TrialTable:
    rng = np.random.default_rng(0)
    rows = []
    for n in (3e7, 6e7, 1e8, 3e8):
        for d in (3e9, 1e10, 3e10):
            lr0, b0 = 0.003 * (n / 1e8) ** -0.4 * (d / 1e10) ** 0.2, 5e5 * (d / 1e10) ** 0.5
            for lr in 0.003 * np.exp(np.linspace(-1.8, 1.8, 9)):
                for b in 5e5 * np.exp(np.linspace(-1.6, 1.6, 7)):
                    x, y = math.log(lr / lr0), math.log(b / b0)
                    floor = 1.7 + 0.6 * (n / 1e8) ** -0.3 + 0.4 * (d / 1e10) ** -0.3
                    excess = 0.02 * x * x - 0.006 * x * y + 0.015 * y * y + 5e-4 * rng.standard_normal()
                    rows.append(
                        {"size": n, "tokens": d, "batch": b, "lr": lr, "loss": floor * math.exp(excess)}
                    )
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def table() -> TrialTable:
    return _table()


@pytest.fixture(scope="module")
def objective(table: TrialTable) -> TableObjective:
    return TableObjective(table)


def test_measured_runs_are_given_back_with_their_lower_fidelities(
    table: TrialTable, objective: TableObjective
) -> None:
    row = table.frame[(table.frame["size"] == 3e8) & (table.frame["tokens"] == 3e10)].iloc[20]
    config = Configuration(size=3e8, tokens=3e10, batch=row["batch"], lr=row["lr"])
    record = objective.run(config)
    assert record.loss == pytest.approx(row["loss"])
    assert record.cost == objective.cost(config) == 6 * 3e8 * 3e10
    assert record.curve is not None
    assert record.curve.tokens == (3e9, 1e10, 3e10)
    for t, loss in zip(record.curve.tokens, record.curve.loss, strict=True):
        assert loss == pytest.approx(objective.loss(3e8, t, row["batch"], row["lr"]))


def test_a_stopped_run_pays_for_what_it_saw(objective: TableObjective) -> None:
    config = Configuration(size=3e8, tokens=3e10, batch=5e5, lr=3e-3)
    record = objective.run(config, lambda tokens, loss: "enough" if tokens >= 1e10 else None)
    assert (record.state, record.reason) == ("pruned", "enough")
    assert record.tokens == 1e10
    assert record.target_tokens == 3e10
    assert record.cost == 6 * 3e8 * 1e10


def test_nothing_is_known_outside(objective: TableObjective) -> None:
    with pytest.raises(ObjectiveError, match="outside the runs"):
        objective.run(Configuration(size=3e8, tokens=3e10, batch=5e5, lr=1.0))
    with pytest.raises(ObjectiveError, match="no cell"):
        objective.run(Configuration(size=5e8, tokens=3e10, batch=5e5, lr=3e-3))


def test_a_tables_own_curves_come_first() -> None:
    frame = pd.DataFrame(
        {"size": 1e6, "tokens": 1e8, "batch": 1e4, "lr": [1e-3, 2e-3, 4e-3], "loss": [3.0, 2.0, 3.0]}
    )
    frame["curve_tokens"] = [(1e6, 1e8)] * 3
    frame["curve_loss"] = [(5.0, 3.0), (6.0, 2.0), (7.0, 3.0)]
    objective = TableObjective(TrialTable.from_frame(frame))
    record = objective.run(Configuration(size=1e6, tokens=1e8, batch=1e4, lr=2e-3))
    assert record.curve is not None
    assert record.curve.loss == (6.0, 2.0)


def test_costs_count_pilots_and_a_law_needs_few_target_runs(objective: TableObjective) -> None:
    pilots = [c for c in objective.cells if c[0] < 2e8 and c[1] < 2e10]
    result = replay(
        objective,
        TARGET,
        pilots=pilots,
        methods=("law", "grid", "random", "asha", "hyperband"),
        seeds=4,
        limit=40,
    )
    costs = result.costs().set_index("method")
    assert len(costs) == 20
    first = result.trace[result.trace["method"] == "law"].groupby("seed")["cost"].min()
    # the first run of the target comes after pilots, which are paid for, and save more than they cost
    assert first.between(1.01, 2.5).all()
    assert costs.loc["law", "0.50%"].median() < costs.loc["grid", "0.50%"].median()
    assert costs.loc["grid"].drop(columns="seed").to_numpy().max() <= result.grid_size
    assert (result.trace.groupby(["method", "seed"])["excess"].diff().dropna() < 0).all()
    assert set(result.summary()["method"]) == {"law", "grid", "random", "asha", "hyperband"}


@pytest.mark.parametrize("engine", [None, "optuna", "ray"])
def test_every_racer_of_a_law_lends_it_the_base(
    objective: TableObjective, table: TrialTable, engine: str | None
) -> None:
    """It moves what is run; that it does so to the good is measured by `studies.gain.replayed_law --lean`."""
    problem = problem_of("", ReplayedObjective(objective.table), TARGET)
    racer = PlainRacer() if engine is None else get_engine(engine)
    assert isinstance(racer, Racer)

    def runs(base: Base | None) -> list[tuple[float, float, float]]:
        records = racer.race(method("law"), problem.race(0, 5.0, base=base))
        return [(r.size, r.lr, r.batch) for r in itertools.islice(records, 12)]

    assert runs(base_of(table)) != runs(None)


def test_replays_repeat(objective: TableObjective) -> None:
    def trace() -> pd.DataFrame:
        return replay(objective, TARGET, methods=("law", "asha"), seeds=1, limit=10).trace

    pd.testing.assert_frame_equal(trace(), trace())


def test_a_race_reports_at_the_cells_of_fewer_tokens(objective: TableObjective) -> None:
    replayed = ReplayedObjective(objective.table)
    assert problem_of("", replayed, TARGET).race(0, 1.0).rungs == (3e9, 1e10)


def test_an_unknown_method_is_named(objective: TableObjective) -> None:
    with pytest.raises(EngineError, match="unknown method 'magic'"):
        replay(objective, TARGET, methods=("magic",), seeds=1)
    with pytest.raises(ValueError, match="seeds"):
        replay(objective, TARGET, seeds=0)


@pytest.mark.parametrize("name", METHODS)
def test_methods_stay_inside_their_box_and_repeat(objective: TableObjective, name: str) -> None:
    if name not in PlainRacer.race_methods:
        pytest.importorskip("optuna")
    problem = problem_of("toy", ReplayedObjective(objective.table), TARGET)

    def points(seed: int) -> list[tuple[float, float]]:
        racer, method = racer_of(name)
        task = problem.race(seed, 6.0, pilots=method.kind == "law")
        (low_lr, high_lr), (low_b, high_b) = task.box["lr"], task.box["batch"]
        found = [(r.lr, r.batch) for r, _ in zip(racer.race(method, task), range(6), strict=False)]
        assert all(low_lr * 0.999 <= lr <= high_lr * 1.001 for lr, _ in found)
        assert all(low_b * 0.999 <= b <= high_b * 1.001 for _, b in found)
        return found

    again = points(1)
    assert again == points(1)
    assert name == "law" or again != points(2)


def test_sizes_and_tokens_are_the_same_as_everywhere() -> None:
    rows = [
        {"size": n * 1e6, "tokens": d * 1e8, "batch": 1e4, "lr": lr, "loss": 3.0}
        for n, lr in ((1.0, 1e-3), (1.004, 2e-3), (1.5, 1e-3))
        for d in (0.996, 1.0)
    ]
    objective = TableObjective(TrialTable.from_frame(pd.DataFrame(rows)))
    assert len(objective.cells) == 2  # one per size: half a percent is what last steps and counting make
    grid = objective.grid(1.002e6, 1e8)
    assert sorted(np.exp(grid.points[:, 0])) == pytest.approx([1e-3, 2e-3], rel=1e-5)
    assert objective.fidelities(1e6, 1e8) == pytest.approx((1e8,), rel=0.01)
