"""How trials end in the table, what of a result counts, and what is said: by the hooks alone, without a cluster."""

from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from stub_cluster import StubCluster, result_of, stub_trial, world_curve

from metaopt_hpo.scaling.policy import refits
from metaopt_hpo.trials.logged_results import CUT, NOT_LAUNCHED
from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler, ScalingLawSearch, decision_log, trial_table
from metaopt_hpo_ray.metrics import count
from metaopt_hpo_ray.older_checkpoints import NONE_SAVED

SPACE = {"size": 1e6, "tokens": 2e7, "batch": 1e4, "lr": 1e-2}


def storage_at(folder: Path) -> Any:
    return SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(),
        experiment_fs_path=str(folder),
        experiment_driver_staging_path=str(folder),
    )


def wired(**options: Any) -> tuple[ScalingLawScheduler, JournalCallback]:
    scheduler = ScalingLawScheduler(**{"background": False, **options})
    keeper = JournalCallback(scheduler)
    scheduler.set_search_properties("loss", "min")
    return scheduler, keeper


def started(scheduler: ScalingLawScheduler, key: str = "t", **config: Any) -> tuple[StubCluster, Trial]:
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trial = stub_trial(key, **{**SPACE, **config})
    cluster.add(trial)
    assert scheduler.choose_trial_to_run(cluster) is trial
    trial.set_status(Trial.RUNNING)
    return cluster, trial


# -- ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "last", "state", "tokens"),
    [
        (1.0, None, "complete", 2e7),
        (0.98, None, "complete", 0.98 * 2e7),
        (0.5, None, "stopped", 1e7),
        (0.875, 1.0, "complete", 2e7),  # its last report met a criterion, or said done
        (0.5, 0.75, "complete", 1.5e7),  # a criterion ends it there: that was the plan
    ],
)
def test_what_tune_completes_ends_with_what_it_reached(
    seen: float, last: float | None, state: str, tokens: float
) -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    scheduler.on_trial_result(cluster, trial, result_of(trial, 2e7 * seen, 3.0))
    end = result_of(trial, 2e7 * (last or seen), 2.5 if last else 3.0)
    scheduler.on_trial_complete(cluster, trial, {**end, "done": True})
    record = scheduler.book.entries["t"].record()
    assert (record.state, record.tokens, record.loss) == (state, tokens, 2.5 if last else 3.0)
    assert record.cost == 6 * 1e6 * tokens
    assert record.target_tokens == (tokens if state == "complete" and tokens < 0.95 * 2e7 else 2e7)


def test_a_trial_that_counts_no_tokens_completes_at_those_planned_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    for loss in (4.0, 3.0):
        scheduler.on_trial_result(cluster, trial, {"loss": loss, "training_iteration": 1})
    scheduler.on_trial_complete(cluster, trial, {"loss": 3.0, "done": True})
    record = scheduler.book.entries["t"].record()
    assert (record.state, record.tokens, record.loss) == ("complete", 2e7, 3.0)
    assert caplog.text.count("no number as 'tokens_seen'") == 1


def test_one_that_reports_nothing_has_failed() -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    scheduler.on_trial_complete(cluster, trial, {})
    assert scheduler.book.entries["t"].state == "failed"


def test_an_experiments_end_closes_what_runs_and_what_waits_and_a_restore_takes_both_up(
    tmp_path: Path,
) -> None:
    scheduler, keeper = wired()
    keeper.open_journal(storage_at(tmp_path))
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trials = [stub_trial(f"t{i}", **{**SPACE, "size": 10.0**i}) for i in range(1, 6)]
    for trial in trials:
        cluster.add(trial)
    first = scheduler.choose_trial_to_run(cluster)
    assert first is not None
    first.set_status(Trial.RUNNING)
    scheduler.on_trial_result(cluster, first, result_of(first, 1e6, 3.0))
    keeper.on_experiment_end(trials)
    table = trial_table(tmp_path).frame.set_index("trial")
    assert (table.state["t1"], table.tokens["t1"]) == ("stopped", 1e6)
    assert CUT in table.reason["t1"]
    assert (table.state["t5"], table.reason["t5"]) == ("pruned", NOT_LAUNCHED)
    assert len(table) == 5
    again, keeper = wired()
    keeper.set_state(json.loads(json.dumps(keeper.get_state())))
    keeper.open_journal(storage_at(tmp_path))
    for trial in trials:
        trial.set_status(Trial.PENDING)
        again.on_trial_add(cluster, trial)
    assert {e.state for e in again.book.entries.values()} == {"running"}
    assert again.book.entries["t1"].cost == 6 * 10 * 1e6


@pytest.mark.parametrize("decides", [True, False])
def test_a_keeper_without_our_scheduler_tells_a_stop_from_an_end(decides: bool, tmp_path: Path) -> None:
    keeper = JournalCallback(decides=decides)
    keeper.open_journal(storage_at(tmp_path))
    ends = {"ends": (2e7, {}), "returns": (1e7, {}), "done": (1e7, {"done": True})}
    for key, (tokens, more) in ends.items():
        trial = stub_trial(key, **SPACE)
        trial.set_status(Trial.RUNNING)
        result = result_of(trial, tokens, 3.0, **more)
        keeper.on_trial_result(1, [trial], trial, result)
        trial.run_metadata.last_result = result
        keeper.on_trial_complete(1, [trial], trial)
    states = {k: e.state for k, e in keeper.book.entries.items()}
    # a scheduler that stops trials may have stopped it; under FIFO nobody has
    assert states == {"ends": "complete", "returns": "stopped", "done": "pruned" if decides else "complete"}


def test_a_trial_ended_while_its_pause_is_being_saved_was_pruned(tmp_path: Path) -> None:
    """HyperBand halves trials whose checkpoint is not yet whole; Tune calls them RUNNING and asks nobody again."""
    keeper = JournalCallback()
    keeper.open_journal(storage_at(tmp_path))
    ours, _ = wired()
    cluster, told = started(ours)
    trial = stub_trial("halted", **SPACE)
    for saved in (trial, told):
        saved.set_status(Trial.RUNNING)
    result = result_of(trial, 1e7, 3.0)
    keeper.on_trial_result(1, [trial], trial, result)
    ours.on_trial_result(cluster, told, result_of(told, 1e7, 3.0))
    for saved in (trial, told):
        saved.run_metadata.last_result = result
        saved.temporary_state.saving_to = "a checkpoint under way"
    keeper.on_trial_complete(1, [trial], trial)
    ours.on_trial_complete(cluster, told, result_of(told, 1e7, 3.0))
    assert [b.entries[t.trial_id].state for b, t in ((keeper.book, trial), (ours.book, told))] == [
        "pruned"
    ] * 2


# -- results -------------------------------------------------------------------------------------------------

SCALARS = [float, np.float32, np.float64, np.int64, torch.tensor, lambda x: np.array(float(x))]


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("name", ["loss", "eval/loss"])
def test_numbers_of_every_kind_flat_or_nested_are_numbers(kind: Any, name: str, tmp_path: Path) -> None:
    loss, tokens = kind(3), kind(20_000_000)
    flat = {name: loss, "tokens_seen": tokens}
    nested = {"eval": {"loss": loss}, "tokens_seen": tokens} if "/" in name else flat
    keeper = JournalCallback(metric=name)
    keeper.open_journal(storage_at(tmp_path))
    trial = stub_trial("t", **SPACE)
    trial.run_metadata.last_result = nested
    keeper.on_trial_result(1, [trial], trial, nested)
    keeper.on_trial_complete(1, [trial], trial)
    scheduler = ScalingLawScheduler(metric=name, background=False)
    JournalCallback(scheduler)
    cluster, trial = started(scheduler)
    assert scheduler.on_trial_result(cluster, trial, flat) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(cluster, trial, flat)
    search = ScalingLawSearch(candidates=[(1e6, 2e7)], lr=(1e-4, 1e-1), batch=8)
    search.set_search_properties(name, "min", {"strategy": "wsd"})
    search.suggest("t")
    search.on_trial_complete("t", flat)
    for book in (keeper.book, scheduler.book, search.book):
        entry = book.entries["t"]
        assert (entry.state, entry.last) == ("complete", (2e7, 3.0))
    assert trial_table(tmp_path).frame.loss[0] == 3.0


@pytest.mark.parametrize("loss", ["n/a", None, [3.0], {"x": 3.0}, True, np.zeros(2)])
def test_what_is_no_number_is_passed_over_and_said_once(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    scheduler, keeper = wired()
    cluster, trial = started(scheduler)
    for tokens in (1e6, 2e6, 3e6):
        result = result_of(trial, tokens, loss)
        assert scheduler.on_trial_result(cluster, trial, result) == TrialScheduler.CONTINUE
        keeper.on_trial_result(1, [trial], trial, result)
    assert not scheduler.book.entries["t"].points
    assert caplog.text.count("no number as 'loss'") == 1
    assert "Traceback" not in caplog.text


def test_a_loss_that_is_not_finite_ends_a_trial_that_counts_no_tokens() -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    assert scheduler.on_trial_result(cluster, trial, {"loss": math.nan}) == TrialScheduler.STOP
    assert scheduler.book.entries["t"].state == "diverged"


REPORTED = {
    "lr": 1e-9,
    "size": 5.0,
    "batch": [1],
    "strategy": "mine",
    "seed": 7,
    "workload": "x",
    "memory": "2 GB",
}


@pytest.mark.parametrize("keeper_only", [True, False])
def test_what_a_plain_trainable_reports_by_the_names_of_facts_says_nothing_of_the_trial(
    keeper_only: bool,
) -> None:
    scheduler, keeper = (None, JournalCallback()) if keeper_only else wired()
    trial = stub_trial("t", **SPACE, strategy="cosine", seed=3)
    for tokens in (1e6, 2e7):
        result = result_of(trial, tokens, 3.0, found_lr=2e-3, **REPORTED)
        if scheduler is not None:
            scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        keeper.on_trial_result(1, [trial], trial, result)
    record = keeper.book.entries["t"].record()
    assert (record.lr, record.size, record.batch, record.strategy, record.seed) == (
        1e-2,
        1e6,
        1e4,
        "cosine",
        3,
    )
    assert (record.found_lr, record.tuning) == (2e-3, "external")


def test_a_complete_trial_that_learned_nothing_keeps_its_reason() -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    said = {"process": "p", "run_state": "complete", "run_reason": "made no progress: …"}
    result = result_of(trial, 2e7, 3.0, **said)
    scheduler.on_trial_result(cluster, trial, result)
    scheduler.on_trial_complete(cluster, trial, {**result, "done": True})
    record = scheduler.book.entries["t"].record()
    assert record.state == "complete"
    assert record.reason.endswith("made no progress: …")


def test_a_trial_run_says_who_tunes_and_what_was_found() -> None:
    keeper = JournalCallback()
    trial = stub_trial("t", **SPACE)
    said = {
        "process": "p",
        "tuning": "self",
        "found_lr": 2e-3,
        "strategy": "metaoptimize",
        "unique_tokens": 1e6,
    }
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 2e7, 3.0, **said))
    record = keeper.book.entries["t"].record()
    assert record.self_tuning
    assert (record.tuning, record.found_lr, record.unique_tokens) == ("self", 2e-3, 1e6)


def test_sizes_that_come_late_from_the_config_or_the_results_are_taken() -> None:
    scheduler, _ = wired()
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trial = stub_trial("t", tokens=2e7, batch=1e4, lr=1e-2)
    cluster.add(trial)
    trial.set_status(Trial.RUNNING)
    scheduler.on_trial_result(cluster, trial, result_of(trial, 1e6, 3.0, size=1e6))
    assert scheduler.book.entries["t"].described
    other = stub_trial("u", tokens=2e7, batch=1e4, lr=1e-2)
    cluster.add(other)
    other.config["size"] = 4e6
    scheduler.on_trial_add(cluster, other)
    assert scheduler.book.entries["u"].size == 4e6


def test_population_based_training_changes_a_trials_lr_through_its_config() -> None:
    keeper = JournalCallback()
    trial = stub_trial("t", **SPACE)
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 1e6, 3.0))
    trial.config["lr"] = 2e-2
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 2e6, 2.9))
    record = keeper.book.entries["t"].record()
    assert (record.lr, record.params["lr_path"]) == (2e-2, "0:0.01 1e+06:0.02")


# -- what is decided, and said ---------------------------------------------------------------------------------


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


def test_a_trial_that_goes_on_from_trains_own_checkpoints_is_not_said_to_have_begun_anew() -> None:
    for first, noted in ((1e6, True), (3e6, False)):
        keeper = JournalCallback()
        trial = stub_trial("t", **SPACE)
        keeper.on_trial_start(1, [trial], trial)
        for tokens in (1e6, 2e6):
            keeper.on_trial_result(1, [trial], trial, result_of(trial, tokens, 3.0, pid=1))
        keeper.on_trial_start(2, [trial], trial)
        keeper.on_trial_result(2, [trial], trial, result_of(trial, first, 3.0, pid=2))
        assert (NONE_SAVED in keeper.book.entries["t"].note) == noted


# -- launching -------------------------------------------------------------------------------------------------


def test_trials_that_cannot_be_placed_block_no_others() -> None:
    """Sixteen that need a whole node each, and small ones beside a free GPU."""
    scheduler, _ = wired(pilot_sizes=9)
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    for i in range(16):
        for name, size, kind in (("whole", 1e6, "node"), ("one", 2e6, "gpu")):
            trial = stub_trial(f"{name}{i}", **{**SPACE, "size": size, "lr": 1e-3 * (i + 1)})
            trial.placement_group_factory = kind
            cluster.add(trial)
    for _ in range(100):
        trial = scheduler.choose_trial_to_run(cluster)  # type: ignore[assignment]
        if trial is not None and trial.status == Trial.PAUSED:
            # a node is never free: those trials stay pending
            trial.set_status(Trial.PENDING if trial.trial_id.startswith("whole") else Trial.RUNNING)
    status = [t.status for t in cluster.get_trials() if t.trial_id.startswith("one")]
    assert status == [Trial.RUNNING] * 16


@pytest.mark.parametrize(
    ("told", "option", "most"), [(None, None, 8), ("3", None, 3), ("64", None, 20), ("64", 5, 5)]
)
def test_as_many_wait_for_resources_as_tune_or_the_user_says(
    told: str | None, option: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNE_MAX_PENDING_TRIALS_PG", raising=False)
    if told:
        monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", told)
    scheduler, _ = wired(ahead=option)
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trials = [stub_trial(f"t{i}", **{**SPACE, "lr": 1e-3 * (i + 1)}) for i in range(20)]
    for trial in trials:
        cluster.add(trial)
    for _ in range(100):
        chosen = scheduler.choose_trial_to_run(cluster)
        if chosen is not None:
            chosen.set_status(Trial.PENDING)
    assert sum(t.status == Trial.PENDING for t in trials) == most


def test_a_fit_that_hangs_is_given_up_and_what_waits_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    released, waits = threading.Event(), []

    def hang(*args: Any) -> refits.Fitted:
        waits.append(args)
        released.wait()
        return refits.Fitted()

    monkeypatch.setattr(refits, "_fit", hang)
    monkeypatch.setattr(refits, "DEADLINE", 0.01)
    scheduler, _ = wired(background=True)
    curve = lambda t: world_curve(t.config["size"], t.config["tokens"], t.config["lr"])  # noqa: E731
    cluster = StubCluster(scheduler, curve, slots=2)
    for i, size in enumerate((1e6, 2e6, 4e6, 8e6, 1.6e7)):
        for j, lr in enumerate((1e-3, 3e-3, 1e-2, 3e-2)):
            cluster.add(stub_trial(f"h{i}{j}", size=size, tokens=2e7, batch=1024, lr=lr))
    try:
        cluster.run()
    finally:
        released.set()
    assert waits
    assert len(cluster.started) == 20
    assert scheduler.law is None


# -- one owner ---------------------------------------------------------------------------------------------------


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
