"""Decisions, fits and refusals are seen, and what is kept of them does not grow or part."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from one_trial import SPACE, storage_at, wired
from ray import cloudpickle
from stub_cluster import StubCluster, result_of, stub_trial, world_curve

from metaopt_hpo_ray import JournalCallback, decision_log, trial_table
from metaopt_hpo_ray.metrics import count


def test_every_decision_is_in_the_log_and_in_the_table_with_time_and_reason(tmp_path: Path) -> None:
    scheduler, keeper = wired()
    keeper.open_journal(storage_at(tmp_path))
    curve = lambda t: world_curve(t.config["size"], t.config["tokens"], t.config["lr"])  # noqa: E731
    cluster = StubCluster(scheduler, curve, slots=1)
    for i, size in enumerate((1e6, 2e6, 4e6, 8e6)):
        for j, lr in enumerate((1e-3, 3e-3, 1e-2, 3e-2)):
            cluster.add(stub_trial(f"t{i}{j}", size=size, tokens=2e7, batch=1024, lr=lr))
    cluster.run()
    keeper.on_experiment_end([])
    log = decision_log(tmp_path)
    said = {r["trial"]: r for r in log if r["action"] == "launch"}
    refused = {r["trial"] for r in log if r["action"] == "stop"} - said.keys()
    assert said.keys() | refused == set(scheduler.book.entries)
    assert all(r["time"] > 0 and r["reason"] for r in log)
    assert any({"law", "predicted", "probability"} <= r.keys() for r in said.values())
    assert any(r["action"] == "fit" and r["law"] == 1 for r in log)
    rows = trial_table(tmp_path).frame.set_index("trial")
    assert len(rows) == 16
    for key, row in said.items():
        assert f"Z: {row['reason']}" in rows.reason[key]
    for key in refused:
        assert (rows.state[key], rows.tokens[key]) == ("pruned", 0)
        assert "not launched: " in rows.reason[key]
    numbers = count(scheduler.book)
    assert numbers["metaopt_trials_launched"] == len(said)
    assert numbers["metaopt_flops_saved"] > 0


def test_fits_refusals_and_stops_are_seen_without_any_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("metaopt_hpo_ray")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    logger.setLevel(logging.NOTSET)
    wired()
    wired()
    assert logger.isEnabledFor(logging.INFO)
    assert len(logger.handlers) == 1


def test_pickled_apart_scheduler_and_keeper_find_each_other_by_the_experiments_folder(tmp_path: Path) -> None:
    """As under Ray Client, which pickles a Tuner's arguments one by one."""
    pair = wired()
    scheduler, keeper = (cloudpickle.loads(cloudpickle.dumps(part)) for part in pair)
    storage = storage_at(tmp_path)
    trial = stub_trial("t", **SPACE)
    trial.storage = storage
    trial.init_local_path = lambda: None  # type: ignore[method-assign]
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    cluster.add(trial)
    keeper.on_step_begin(0, [trial])
    scheduler.on_trial_result(cluster, trial, result_of(trial, 2e7, 3.0))
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 2e7, 3.0))
    scheduler.on_trial_complete(cluster, trial, result_of(trial, 2e7, 3.0))
    keeper.on_trial_complete(1, [trial], trial)
    keeper.on_experiment_end([trial])
    assert keeper.book is scheduler.book
    assert trial_table(tmp_path).frame.state.tolist() == ["complete"]


def test_a_snapshot_does_not_grow_with_what_is_in_the_journal(tmp_path: Path) -> None:
    scheduler, keeper = wired()
    keeper.open_journal(storage_at(tmp_path))
    sizes = []
    for i in range(40):
        scheduler.book.add(f"t{i}", **SPACE)
        for k in range(1, 50):
            scheduler.book.report(f"t{i}", 1e5 * k, 3.0)
        scheduler.book.close(f"t{i}", "complete")
        keeper.flush()
        sizes.append(len(cloudpickle.dumps(keeper.get_state())))
    assert max(sizes) < min(sizes) + 20


def test_no_state_makes_set_state_raise() -> None:
    for state in ({}, {"owner": None}, {"scheduler": {"book": {"format": "x"}}}, {"book": 3}):
        for keeper in (JournalCallback(), wired()[1]):
            keeper.set_state(state)
