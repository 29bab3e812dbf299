"""How trials end in the table, and what is said: by the hooks alone, without a cluster."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from one_trial import SPACE, started, storage_at, wired
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from stub_cluster import StubCluster, result_of, stub_trial, world_curve

from metaopt_hpo.scaling.policy import refits
from metaopt_hpo.trials.logged_results import CUT, NOT_LAUNCHED
from metaopt_hpo_ray import JournalCallback, trial_table
from metaopt_hpo_ray.older_checkpoints import NONE_SAVED


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


def test_a_loss_that_is_not_finite_ends_a_trial_that_counts_no_tokens() -> None:
    scheduler, _ = wired()
    cluster, trial = started(scheduler)
    assert scheduler.on_trial_result(cluster, trial, {"loss": math.nan}) == TrialScheduler.STOP
    assert scheduler.book.entries["t"].state == "diverged"


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
