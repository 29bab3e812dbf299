"""Clocks that jump: a live trial is not taken for a lost one, a lost one is found, and a search decides the same."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.clock import SteadyNow
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, leases, retry_stale_trials
from metaopt_hpo_optuna.leases import GRACE, Lease


class Clock:
    """A time of day that can be set, and a monotonic clock that cannot."""

    def __init__(self) -> None:
        self.day, self.steady = 1.7e9, 500.0

    def time(self) -> float:
        return self.day

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        self.after(seconds)

    def after(self, seconds: float) -> None:
        self.day += seconds
        self.steady += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "time", made)
    monkeypatch.setattr("metaopt_hpo.clock.time", made)
    monkeypatch.setattr(leases, "_now", SteadyNow(GRACE))
    return made


def running(lease: float) -> tuple[optuna.Study, Lease]:
    study = optuna.create_study()
    held = Lease(study.ask(), lease)
    held.take()
    return study, held


@pytest.mark.parametrize("jump", [120.0, 3600.0, 10 * 365 * 86400.0])
def test_a_clock_set_ahead_loses_no_live_trial(clock: Clock, jump: float) -> None:
    study, held = running(60.0)
    clock.after(10.0)
    clock.day += jump  # set, or the machine was asleep
    assert retry_stale_trials(study) == []
    clock.after(5.0)
    assert retry_stale_trials(study) == []
    held.take()
    clock.after(GRACE + 1)
    held.take()
    assert retry_stale_trials(study) == []
    # and one that is silent from then on is found
    clock.after(61.0)
    assert retry_stale_trials(study) == [0]


def test_a_trial_that_was_lost_before_the_clock_was_set_ahead_is_found(clock: Clock) -> None:
    study, _ = running(60.0)
    clock.after(61.0)
    clock.day += 3600.0
    assert retry_stale_trials(study) == [0]


def test_a_clock_set_back_delays_and_loses_nothing(clock: Clock) -> None:
    study, held = running(60.0)
    clock.day -= 3600.0
    clock.after(30.0)
    assert retry_stale_trials(study) == []
    held.take()
    clock.after(61.0)
    assert retry_stale_trials(study) == [0]


@pytest.mark.parametrize("junk", ["x", [1], {"a": 1}, True, None])
def test_a_lease_that_is_no_number_is_none(junk: object) -> None:
    study = optuna.create_study()
    study.ask().set_user_attr("metaopt:lease", junk)
    assert retry_stale_trials(study) in ([], [0])


def ended(draw: random.Random, number: int, start: datetime, jumps: bool) -> FrozenTrial:
    """A finished trial that ended at its number, or at any time within a day."""
    size, lr = 1e6 * 4 ** (number % 3), 10 ** draw.uniform(-4, -1)
    trial = optuna.create_trial(
        value=2 + (size / 1e6) ** -0.3 + 0.05 * (1 + draw.random()) * abs(lr - 0.01),
        params={"lr": lr},
        distributions={"lr": FloatDistribution(1e-4, 1e-1, log=True)},
        user_attrs={"size": size, "tokens": 20 * size, "batch": 32.0},
    )
    hours = draw.uniform(-12, 12) if jumps else number / 60
    trial.datetime_start = start
    trial.datetime_complete = start + timedelta(hours=hours)
    return trial


def asked(study: optuna.Study) -> tuple[float, bool]:
    trial = study.ask()
    for name, value in {"size": 64e6, "tokens": 128e7, "batch": 32.0}.items():
        trial.set_user_attr(name, value)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.report(3.5, 10**9)
    stop = trial.should_prune()
    study.tell(trial, state=TrialState.FAIL)
    return lr, stop


@pytest.mark.parametrize("seed", range(3))
def test_who_read_on_the_way_and_who_reads_at_the_end_decide_the_same(seed: int) -> None:
    """Whatever times the trials say they ended at: a clock was set between two of them, or two machines differ."""
    storage, draw = optuna.storages.InMemoryStorage(), random.Random(seed)
    study = optuna.create_study(storage=storage, study_name="s")

    def worker() -> optuna.Study:
        parts = {"sampler": ScalingLawSampler(seed=0), "pruner": ScalingLawPruner()}
        return optuna.load_study(study_name="s", storage=storage, **parts)

    early, start = worker(), datetime(2024, 3, 31)
    for number in range(24):
        study.add_trial(ended(draw, number, start, jumps=True))
        if number % 5 == 4:
            asked(early)
    late, one = worker(), early.ask()
    answers = []
    for who in (early, late, early, late):
        frozen = storage.get_trial(one._trial_id)
        for name, value in {"size": 64e6, "tokens": 128e7, "batch": 32.0}.items():
            frozen.set_user_attr(name, value)
        frozen.intermediate_values = {10**9: 3.5}
        lr = who.sampler.sample_independent(who, frozen, "lr", FloatDistribution(1e-4, 1e-1, log=True))
        frozen.set_user_attr("lr", lr)
        answers.append((lr, who.pruner.prune(who, frozen)))
    assert len(set(answers)) == 1, answers
