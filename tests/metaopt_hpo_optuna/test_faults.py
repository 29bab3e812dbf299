"""Workers that are killed, databases that vanish: no finished trial is lost and no curve is bent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from torch import nn

from metaopt_hpo.strategies import make
from metaopt_hpo_optuna import TrialRun, retry_stale_trials
from metaopt_hpo_optuna.leases import Lease, patiently

TOKENS, BATCH, WORKERS, WANTED = 2048, 16, 8, 10


def train(trial: optuna.Trial, folder: Path, die_at: int | None = None, lease: float | None = None) -> float:
    """A tiny run, a function of its lr alone."""
    lr = trial.suggest_float("lr", 1e-3, 0.1, log=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    held_out = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean() + 1.0

    strategy = make("constant", lr=lr, warmup=0.0)
    with TrialRun(
        trial, model, strategy, size=5, tokens=TOKENS, batch=BATCH,
        evaluate=lambda: loss(held_out), checkpoint=folder, lease=lease,
    ) as run:  # fmt: skip
        for step in run:
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            run.step(loss(torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))))
    return run.value


def open_storage(kind: str, place: str) -> BaseStorage:
    if kind == "journal":
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3)
        return optuna.storages.RDBStorage(
            place, heartbeat_interval=1, grace_period=8, heartbeat_stale_trial_callback=retry
        )


def work(index: int, kind: str, place: str, folder: Path, deadline: float) -> None:
    """One worker: trials until enough are complete. The first two die in the middle of their first trial."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    study = optuna.load_study(
        study_name="s",
        storage=open_storage(kind, place),
        sampler=optuna.samplers.RandomSampler(seed=index),
        pruner=optuna.pruners.NopPruner(),
    )
    doomed = index < 2

    def objective(trial: optuna.Trial) -> float:
        return train(trial, folder, die_at=70 if doomed else None, lease=8.0 if kind == "journal" else None)

    while time.time() < deadline:
        if kind == "journal":
            retry_stale_trials(study)
        states = [t.state for t in study.get_trials(deepcopy=False)]
        lost = sum(s == TrialState.FAIL for s in states)
        if states.count(TrialState.COMPLETE) >= WANTED and lost >= 2 and TrialState.WAITING not in states:
            return
        study.optimize(objective, n_trials=1)
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["DataError", "IntegrityError", "ProgrammingError"])
def test_a_value_that_a_database_cannot_hold_is_no_outage(kind: str) -> None:
    """Optuna wraps them all alike; waiting two minutes would not make the value fit."""
    import sqlalchemy.exc

    calls: list[int] = []

    def refused() -> None:
        calls.append(1)
        cause = getattr(sqlalchemy.exc, kind)("INSERT", {}, Exception("integer out of range"))
        raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from cause

    with pytest.raises(optuna.exceptions.StorageInternalError):
        patiently(refused)
    assert calls == [1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_two_of_eight_workers_are_killed_in_mid_trial(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = (
        str(tmp_path / "s.journal")
        if kind == "journal"
        else request.getfixturevalue("postgres").new_database()
    )
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    optuna.create_study(study_name="s", storage=open_storage(kind, place))
    context = multiprocessing.get_context("fork")
    deadline = time.time() + 90
    workers = [context.Process(target=work, args=(i, kind, place, folder, deadline)) for i in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(150)
    assert [w.exitcode for w in workers] == [-signal.SIGKILL] * 2 + [0] * (WORKERS - 2)

    study = optuna.load_study(study_name="s", storage=open_storage(kind, place))
    trials = study.trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) >= WANTED
    killed = [t for t in trials if t.state == TrialState.FAIL]
    assert len(killed) == 2
    for lost in killed:
        (retried,) = [t for t in trials if t.system_attrs.get("failed_trial") == lost.number]
        assert retried.state == TrialState.COMPLETE
        assert retried.params == lost.params
        # the lost part was reported before the checkpoint was taken up, and the curve is that of a quiet run
        assert lost.intermediate_values.items() <= retried.intermediate_values.items()
        quiet = optuna.create_study(pruner=optuna.pruners.NopPruner())
        quiet.enqueue_trial(lost.params)
        quiet.optimize(lambda trial: train(trial, tmp_path), n_trials=1)
        assert retried.intermediate_values == quiet.trials[0].intermediate_values
        (tmp_path / f"{quiet.study_name}-trial-0.pt").unlink()


def test_a_lost_trial_is_queued_once_and_no_more_than_allowed(
    make_storage: Callable[[str], BaseStorage],
) -> None:
    study = optuna.create_study(storage=make_storage("journal"))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("metaopt:lease", time.time() - 1)
    trial.set_user_attr("metaopt:checkpoint", "file.pt")
    assert retry_stale_trials(study) == [0]
    assert retry_stale_trials(study) == []
    waiting = study.trials[1]
    assert waiting.state == TrialState.WAITING
    assert waiting.params == study.trials[0].params
    assert waiting.user_attrs == {"metaopt:checkpoint": "file.pt"}
    for retry in (1, 2):
        again = study.ask()
        assert again.number == retry
        again.set_user_attr("metaopt:lease", time.time() - 1)
        retry_stale_trials(study, max_retry=2)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 3
    with pytest.raises(ValueError, match="max_retry must be at least 0"):
        retry_stale_trials(study, max_retry=-1)


def test_a_worker_killed_before_its_run_began_is_noticed(make_storage: Callable[[str], BaseStorage]) -> None:
    study = optuna.create_study(storage=make_storage("journal"))
    asked = study.ask()
    lr = asked.suggest_float("lr", 0.1, 1.0)
    # nothing says that this study's trials take leases: a trial without one may be anybody's
    assert retry_stale_trials(study, grace=1e-6) == []
    other = study.ask()
    other.set_user_attr("metaopt:lease", time.time() + 60)
    assert retry_stale_trials(study) == []  # it is younger than ten minutes
    assert retry_stale_trials(study, grace=None) == []
    unleased = study.ask()
    unleased.set_user_attr("metaopt:flops_per_token", 30.0)  # a TrialRun without a lease
    assert retry_stale_trials(study, grace=1e-6) == [asked.number]
    assert study.ask().suggest_float("lr", 0.1, 1.0) == lr
    with pytest.raises(ValueError, match="grace must be more than 0 seconds"):
        retry_stale_trials(study, grace=0.0)


def test_a_lease_is_renewed_while_its_block_runs() -> None:
    study = optuna.create_study()
    trial = study.ask()
    with Lease(trial, 0.4):
        first = study.trials[0].user_attrs["metaopt:lease"]
        assert retry_stale_trials(study) == []
        time.sleep(0.5)
        assert study.trials[0].user_attrs["metaopt:lease"] > first
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Lease(trial, 0)


def test_outages_are_waited_for_and_mistakes_are_not() -> None:
    import sqlalchemy.exc

    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
        return len(calls)

    assert patiently(flaky) == 3
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0)
    calls.clear()
    with pytest.raises(sqlalchemy.exc.OperationalError):
        patiently(flaky, patience=0.0)


@pytest.mark.slow
def test_a_database_that_disappears_for_ten_seconds(postgres: object, tmp_path: Path) -> None:
    server = type(postgres)(postgres.binaries)  # type: ignore[attr-defined,call-arg]  one of its own, to stop
    server.start()
    try:
        study = optuna.create_study(storage=optuna.storages.RDBStorage(server.new_database()))
        gone = threading.Event()

        def outage() -> None:
            server.stop()
            gone.set()
            time.sleep(10)
            server.start()

        thread = threading.Thread(target=outage)
        reports: list[int] = []

        def objective(trial: optuna.Trial) -> float:
            report = trial.report

            def watched(value: float, step: int) -> None:
                reports.append(step)
                if len(reports) == 8:
                    thread.start()
                    gone.wait(60)
                report(value, step)

            trial.report = watched  # type: ignore[method-assign]
            return train(trial, tmp_path)

        study.optimize(objective, n_trials=1)
        thread.join()
        (trial,) = study.trials
        assert trial.state == TrialState.COMPLETE
        assert len(reports) > len(trial.intermediate_values)  # some were made in vain, and made again
        quiet = optuna.create_study(pruner=optuna.pruners.NopPruner())
        quiet.enqueue_trial(trial.params)
        quiet.optimize(lambda t: train(t, tmp_path / "quiet"), n_trials=1)
        assert trial.intermediate_values == quiet.trials[0].intermediate_values
    finally:
        server.stop()
