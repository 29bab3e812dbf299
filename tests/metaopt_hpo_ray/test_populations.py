"""Synchronous HyperBand, PBT and PB2: planned within the budget, run by Tune's classes, copied weights paid once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.schedulers import HyperBandScheduler
from tiny_workload import Tiny

from metaopt_hpo.comparison import populations
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import LR_PATH
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import RayEngine
from metaopt_hpo_ray.journal import JOURNAL

TRAIN = TrainObjective([Tiny()])
WHOLE = 6 * 9 * 960.0


def task(runs: float, **fields: object) -> SearchTask:
    made = SearchTask(
        objective=TRAIN, size=9, tokens=960, batch=16, lr_bounds=(1e-3, 0.3), budget=runs * WHOLE
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def table() -> TableObjective:
    records = [
        TrialRecord(size=9, tokens=t, batch=16, lr=lr, loss=2 + math.log(lr) ** 2 / 50 + 9 / t, trial=f"{t}{lr}")
        for t in (35, 107, 320, 960)
        for lr in (1e-4, 1e-3, 1e-2, 1e-1, 1)
    ]  # fmt: skip
    return TableObjective(TrialTable.from_records(records))


@pytest.mark.parametrize("name", populations.METHODS)
def test_an_objective_of_whole_runs_is_refused(name: str) -> None:
    class Whole:
        name = "whole"
        sizes = (9.0,)

    with pytest.raises(EngineError, match="knows whole runs only"):
        RayEngine().search(method(name), task(3, objective=Whole()), study="s")


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_what_cannot_change_its_lr_midway_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match="is a table, which holds no such run"):
        RayEngine().search(method(name), task(3, objective=table()), study="s")
    with pytest.raises(EngineError, match="choose a schedule such as 'wsd'"):
        RayEngine().search(method(name), task(3, strategy="metaoptimize"), study="s")


def test_brackets_are_tunes() -> None:
    for rungs in (1, 2, 3):
        real = HyperBandScheduler(max_t=3**rungs, reduction_factor=3)
        assert populations.brackets(rungs) == [
            (real._get_n0(s), round(math.log(real._get_r0(s), 3))) for s in range(rungs + 1)
        ]


@pytest.mark.parametrize("runs", [0.9, 1, 2, 5, 9, 20])
def test_plans_fit_the_budget_and_depth_follows_it(runs: float) -> None:
    pbt = populations.plan(method("pbt"), task(runs), [])
    assert (0 if pbt is None else len(pbt.lrs)) == int(runs)
    hyperband = populations.plan(method("hyperband-sync"), task(runs), [])
    if runs < 1:
        assert hyperband is None
        return
    assert hyperband is not None
    assert len(hyperband.milestones) - 1 == {1: 1, 2: 1, 5: 1, 9: 2, 20: 3}[int(runs)]


def test_a_changed_lr_is_kept_and_replayed() -> None:
    book = Logbook()
    book.outbox = []
    book.add("t", size=9.0, tokens=960.0, batch=16.0, lr=0.01)
    for tokens, lr in ((120, 0.01), (240, 0.02), (360, 0.02)):
        book.report("t", tokens, 1.0, process="p", work=1.0, extra={"lr": lr})
    (record,) = book.records()
    assert (record.lr, record.params) == (0.02, {LR_PATH: "0:0.01 120:0.02"})
    again = Logbook()
    for event in book.outbox:
        again.apply(event)
    assert again.to_state() == book.to_state()


# -- on a cluster ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*scipy.optimize:DeprecationWarning", "ignore:lbfgs failed", "ignore:The optimal value"
)
@pytest.mark.parametrize(("name", "members"), [("pbt", 3), ("pb2", 2)])
def test_a_population_copies_weights_and_changes_lr(cluster: str, name: str, members: int) -> None:
    told: list[TrialRecord] = []
    records = RayEngine().search(method(name), task(members), study=name, progress=told.append)
    assert told == records
    assert [r.state for r in records] == ["complete"] * members
    # copied weights are not paid for by whoever copies them, and nothing is trained twice
    assert [r.cost for r in records] == [WHOLE] * members
    changed = [r for r in records if LR_PATH in r.params]
    assert changed
    for r in changed:
        last = str(r.params[LR_PATH]).split()[-1].split(":")[1]
        assert float(last) == pytest.approx(r.lr, rel=1e-4)
        assert 1e-3 <= r.lr <= 0.3
        assert r.curve is not None
        assert len(r.curve.tokens) == populations.TURNS
    tried = {p.split(":")[1] for r in changed for p in str(r.params[LR_PATH]).split()}
    assert (
        tried
        - {f"{r.lr:.6g}" for r in records if r not in changed}
        - {f"{_first_lr(r):.6g}" for r in changed}
    ), "a copied lr is changed too"
    # whoever copied the best trial at a milestone goes on from its weights: near it, and not where it was
    worst = max(records, key=lambda r: r.curve.loss[0] if r.curve else 0.0)
    assert LR_PATH in worst.params
    assert worst.curve is not None
    alone = TRAIN.open(task(members).configuration(_first_lr(worst)))
    alone.advance(worst.curve.tokens[-1])
    assert worst.loss < 0.9 * alone.record().loss


def _first_lr(record: TrialRecord) -> float:
    return float(str(record.params[LR_PATH]).split()[0].split(":")[1])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trained", "table"])
def test_synchronous_hyperband_halves_what_it_halts(cluster: str, tmp_path: Path, what: str) -> None:
    # with this seed the best of a rung is the first to reach it, so that it waits there and is taken up again
    t = task(5, objective=TRAIN if what == "trained" else table(), seed=2)
    search = method("hyperband-sync")
    records = RayEngine().search(search, t, store=str(tmp_path), study="s")
    states = {r.state for r in records}
    assert states == {"complete", "pruned"}
    cost = math.fsum(r.cost for r in records)
    assert 3.5 * WHOLE < cost <= t.budget * (1 + 1e-9)
    for r in records:
        c = t.configuration(r.lr)
        assert r.cost == pytest.approx(t.objective.cost(c) * r.tokens / 960)
        if r.state == "complete":
            want = t.objective.run(c)
            assert r.loss == want.loss  # halted and taken up again, and the same to the last bit
    journal = tmp_path / "s" / "part-0" / JOURNAL
    book = Logbook.replay(journal.read_text().splitlines())
    assert max(len(e.work) for e in book.entries.values() if e.state == "complete") == 2
    again = RayEngine().search(search, t, store=str(tmp_path), study="s")
    facts = [sorted((r.lr, r.state, r.loss, r.cost) for r in found) for found in (again, records)]
    assert facts[0] == facts[1]
