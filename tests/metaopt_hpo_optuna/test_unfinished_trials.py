"""However a trial ends, its rate has been tried: no proposal is made twice, and what teaches nothing is said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo_optuna import ScalingLawSampler, StudyWarning, trial_table

TOKENS, BATCH = 2**20, 2**12
ENDINGS: dict[str, Callable[[Trial], float]] = {}


def ending(function: Callable[[Trial], float]) -> Callable[[Trial], float]:
    ENDINGS[function.__name__] = function
    return function


@ending
def nan(_: Trial) -> float:
    return math.nan


@ending
def infinite(_: Trial) -> float:
    return math.inf


@ending
def crash(_: Trial) -> float:
    raise RuntimeError("out of memory")


@ending
def pruned(_: Trial) -> float:
    raise optuna.TrialPruned


@ending
def half_reported(trial: Trial) -> float:
    trial.report(4.1, TOKENS // 4)
    trial.report(4.2, TOKENS // 2)
    return 4.1  # the best so far, as early stopping returns it


@ending
def pruned_with_reports(trial: Trial) -> float:
    trial.report(4.0, TOKENS // 4)
    raise optuna.TrialPruned


def searched(end: Callable[[Trial], float], storage: str | None = None, count: int = 12) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0), storage=storage)

    def objective(trial: Trial) -> float:
        size = (1e6, 2e6, 4e6)[trial.number % 3]
        for name, value in {"size": size, "tokens": TOKENS, "batch": BATCH}.items():
            trial.set_user_attr(name, value)
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return end(trial)

    study.optimize(objective, n_trials=count, catch=(RuntimeError,))
    return study.trials


@pytest.mark.parametrize("name", ENDINGS)
def test_every_proposal_is_new_and_does_not_depend_on_how_trials_ended(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StudyWarning)
        rates = [t.params["lr"] for t in searched(ENDINGS[name])]
        assert len(set(rates)) == len(rates)
        assert rates == [t.params["lr"] for t in searched(pruned)]


def test_a_database_counts_failed_trials_too(tmp_path: Path) -> None:
    rates = [t.params["lr"] for t in searched(crash, f"sqlite:///{tmp_path}/s.db", 6)]
    assert rates == [t.params["lr"] for t in searched(crash, count=6)]


def test_completed_trials_that_are_taken_for_stopped_are_said_once() -> None:
    with pytest.warns(StudyWarning, match=r"trial 0 is at 50% of its 'tokens'; report the end") as said:
        trials = searched(half_reported, count=6)
    assert len(said) == 1
    assert all(t.state == TrialState.COMPLETE for t in trials)


def test_a_result_that_was_never_reported_is_that_of_the_end() -> None:
    """An objective that reports on its way and evaluates once more at the end."""

    def end(trial: Trial) -> float:
        trial.report(4.0, TOKENS // 2)
        return 3.5

    study = optuna.create_study()
    study.add_trials(searched(end, count=2))
    assert {(r.state, r.tokens, r.loss) for r in trial_table(study).records()} == {("complete", TOKENS, 3.5)}


@pytest.mark.parametrize(("name", "hint"), [("learning_rate", "lr='learning_rate'"), ("speed", "lr=NAME")])
def test_a_learning_rate_of_another_name_is_said(name: str, hint: str) -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))

    def objective(trial: Trial) -> float:
        for key, value in {"size": 1e6, "tokens": TOKENS, "batch": BATCH}.items():
            trial.set_user_attr(key, value)
        return 3.0 + trial.suggest_float(name, 1e-4, 1e-1, log=True)

    with pytest.warns(StudyWarning, match=rf"has no 'lr', so it teaches no law.*{hint}") as said:
        study.optimize(objective, n_trials=3)
    assert len(said) == 1
