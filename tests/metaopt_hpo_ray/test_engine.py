"""RayEngine: every method keeps to its budget, resumes, and returns records like any other engine's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ray_processes

from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.engine import EngineError, SearchTask, get_engine
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError, Report, no_report
from metaopt_hpo.comparison.protocol import compare
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import RayEngine
from metaopt_hpo_ray.journal import JOURNAL
from metaopt_hpo_ray.proposers import METHODS, BudgetSearch, make_proposer

TOKENS = 270.0
SIZES = (1.0, 2.0, 4.0, 8.0)


class Bowl:
    """A loss that is known: a bowl in ln lr whose centre falls with size. lr above 1 diverges."""

    name = "bowl"
    sizes: Sequence[float] = SIZES

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        c = configuration
        if c.lr == 0.5:
            raise ObjectiveError("no such lr in the table")
        u = math.log(c.lr * 100 * c.size**0.4)
        losses = [
            (2 + 3 * c.size**-0.3) * (1 + 0.03 * u * u) * (t / TOKENS) ** -0.2 for t in (10, 30, 90, 270)
        ]
        state, reason, seen = "complete", "", 4
        if c.lr > 1:
            losses, state, reason, seen = [math.nan], "diverged", "the loss exploded", 1
        for i in range(seen):
            if report((10, 30, 90, 270)[i], losses[i]) is not None:
                raise AssertionError("Tune stops from outside")
        return TrialRecord(
            size=c.size,
            tokens=(10.0, 30.0, 90.0, 270.0)[seen - 1],
            batch=c.batch,
            lr=c.lr,
            loss=losses[-1],
            workload=self.name,
            strategy=c.strategy,
            state=state,  # type: ignore[arg-type]
            reason=reason,
            seed=c.seed,
            initial_loss=20.0,
            target_tokens=c.tokens,
            cost=6.0 * c.size * (10, 30, 90, 270)[seen - 1],
            curve=Curve(tokens=(10.0, 30.0, 90.0, 270.0)[:seen], loss=tuple(losses)),
        )


def task(runs: float = 3, **fields: object) -> SearchTask:
    made = SearchTask(
        objective=Bowl(),
        size=8.0,
        tokens=TOKENS,
        batch=1.0,
        lr_bounds=(1e-4, 0.3),
        budget=runs * 6 * 8 * TOKENS,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def evidence() -> list[TrialRecord]:
    return [
        replace(
            Bowl().run(Configuration(size=s, tokens=TOKENS, batch=1.0, lr=lr)), trial=f"{s}-{lr}", cost=0.0
        )
        for s in SIZES[:3]
        for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    ]


# -- the budget, without Ray -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at_once", [1, 4])
def test_the_budget_is_kept_whatever_runs_at_once(name: str, at_once: int) -> None:
    t = task(runs=6, evidence=evidence() if name == "law" else ())
    search = BudgetSearch(make_proposer(method(name), t), t, [])
    spent, running, number = 0.0, [], 0
    while True:
        config = search.suggest(f"t{number}")
        if isinstance(config, dict):
            running.append((f"t{number}", config))
            number += 1
        if config == "FINISHED":
            break
        if running and (config is None or len(running) == at_once):
            key, c = running.pop(0)
            stopped = number % 3 == 0
            tokens = 90.0 if stopped else TOKENS
            spent += 6 * c["size"] * tokens
            search.on_trial_complete(
                key, {"loss": 3.0 + c["lr"], "tokens_seen": tokens, "flops_here": 6 * c["size"] * tokens}
            )
    assert not running
    assert number >= (6 if name == "grid" else 7)
    assert spent <= t.budget * (1 + 1e-6)
    assert name == "grid" or spent > t.budget - 2 * 6 * 8 * TOKENS


def test_the_law_needs_smaller_models() -> None:
    with pytest.raises(EngineError, match="pilot sizes"):
        make_proposer(method("law"), task())


# -- on a cluster ----------------------------------------------------------------------------------------------


def engine() -> RayEngine:
    made = get_engine("ray")
    assert isinstance(made, RayEngine)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "asha", "hyperband", "tpe", "law"])
def test_a_search_spends_its_budget_and_says_so(cluster: str, name: str) -> None:
    t = task(runs=5, evidence=evidence() if name == "law" else ())
    told: list[TrialRecord] = []
    records = engine().search(method(name), t, study=f"{name}/seed0", progress=told.append)
    assert told == records
    cost = math.fsum(r.cost for r in records)
    assert t.budget - 6 * 8 * TOKENS < cost <= t.budget * (1 + 1e-9)
    assert {(r.engine, r.method, r.study, r.workload) for r in records} == {
        ("ray", name, f"{name}/seed0", "bowl")
    }
    assert [r.trial for r in records] == [str(i) for i in range(len(records))]
    for r in records:
        if r.state == "complete":
            want = Bowl().run(Configuration(size=8.0, tokens=TOKENS, batch=1.0, lr=r.lr))
            assert r.curve is not None
            assert (r.loss, r.curve.loss) == (want.loss, want.curve.loss if want.curve else ())
        else:
            assert r.state == "pruned"
            assert "stopped it after" in r.reason
    if name == "law":
        assert records[0].lr == pytest.approx(8**-0.4 / 100, rel=0.3)


@pytest.mark.slow
def test_a_search_resumes_and_refuses_another_task(cluster: str, tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    short = engine().search(method("grid"), task(runs=3), store=store, study="grid/0")
    again = engine().search(method("grid"), task(runs=3), store=store, study="grid/0")
    assert [(r.lr, r.loss, r.cost) for r in again] == [(r.lr, r.loss, r.cost) for r in short]
    with pytest.raises(EngineError, match="another task"):
        engine().search(method("grid"), task(runs=4), store=store, study="grid/0")
    journal = tmp_path / "trials.ray" / "grid_0" / "part-0" / JOURNAL
    journal.write_text("not ours\n")
    with pytest.raises(EngineError, match="move"):
        engine().search(method("grid"), task(runs=3), store=store, study="grid/0")


@pytest.mark.slow
def test_divergence_is_recorded_and_an_objective_that_raises_is_an_error(
    cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")  # Tune's default, which prints boxes
    diverging = task(runs=3, lr_bounds=(1.5, 1.6))
    records = engine().search(method("random"), diverging, study="wild")
    assert {r.state for r in records} == {"diverged"}
    assert all(math.isnan(r.loss) and r.reason == "the loss exploded" for r in records)
    with pytest.raises(EngineError, match="no such lr"):
        engine().search(method("grid"), task(runs=1, lr_bounds=(0.5, 0.5)), study="raises")
    assert "experiment" not in capsys.readouterr().out


@pytest.mark.slow
def test_searches_in_several_processes_share_one_cluster(cluster: str, tmp_path: Path) -> None:
    losses = [(n, lr, 3 + math.log(lr / 1e-2) ** 2) for n in (10, 20) for lr in (1e-3, 1e-2, 1e-1)]
    table = TrialTable.from_records(
        [TrialRecord(size=n, tokens=8, batch=1, lr=lr, loss=v, trial=f"{n}-{lr}") for n, lr, v in losses]
    )
    plan = ComparisonPlan(
        workload="table",
        methods=("grid",),
        seeds=(0, 1),
        size=20.0,
        pilot_sizes=(),
        tokens=8,
        batch=1,
        lr_bounds=(1e-3, 1e-1),
        runs=2,
        pilot_runs=1,
        engine="ray",
    )
    clusters: list[int] = []

    def look(study: str, record: TrialRecord) -> None:
        clusters.append(sum("gcs_server" in " ".join(p.cmdline()[:1]) for p in ray_processes()))

    result = compare(TableObjective(table), plan, tmp_path / "out", workers=2, progress=look)
    assert list(result.table.frame["state"]) == ["complete"] * 4
    assert clusters == [1] * 4
    assert "RAY_ADDRESS" not in os.environ
