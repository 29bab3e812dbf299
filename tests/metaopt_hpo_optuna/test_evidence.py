"""The law behind decisions is a function of the finished trials, and is fitted seldom."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
from unittest.mock import patch

import numpy as np
import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from metaopt_hpo.scaling.policy.refits import EXACT, GROWTH, before, step
from metaopt_hpo_optuna.evidence import Evidence
from metaopt_hpo_optuna.fields import Fields


@given(st.integers(0, 100_000))
def test_the_schedule_of_fits_is_monotone_and_never_far_behind(count: int) -> None:
    k = step(count)
    assert k <= count
    assert step(k) == k  # a worker that saw only the first k fits the same
    assert count <= EXACT or count < k * GROWTH + 1


@given(st.integers(0, 100_000))
def test_decisions_lag_by_one_step(count: int) -> None:
    assert before(count) < step(count) or count == 0
    assert before(step(count)) == before(count)


def test_a_law_is_prepared_before_it_decides() -> None:
    study, known = grown(), evidence()
    decided = known.read(study).law
    assert decided is not None
    add(study, 4e4, 0.02)
    known.read(study)  # the law of all trials before this one decides; that of this one is under way
    add(study, 4e4, 0.03)
    with patch("metaopt_hpo.scaling.policy.refits.prepare"):
        now = known.read(study).law
    assert now is not None
    assert now.trials >= decided.trials


def test_a_forked_worker_does_not_wait_for_its_parents_thread() -> None:
    study = grown()
    evidence().read(study)  # leaves a fit under way
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: os._exit(evidence().read(study).law is None))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_fits_grow_with_the_logarithm() -> None:
    assert len({step(n) for n in range(10_000)}) < EXACT + math.log(10_000 / EXACT) / math.log(GROWTH) + 2


def add(study: optuna.Study, size: float, lr: float) -> None:
    x = math.log(lr / (0.03 * (size / 1e4) ** -0.4))
    study.add_trial(
        optuna.create_trial(
            value=3.0 + 0.1 * x * x + (size / 1e4) ** -0.3,
            params={"lr": lr},
            distributions={"lr": FloatDistribution(1e-4, 1.0)},
            user_attrs={"size": size, "tokens": 4096, "batch": 64},
        )
    )


def grown(sizes: tuple[float, ...] = (1e4, 2e4, 4e4), lrs: int = 8) -> optuna.Study:
    study = optuna.create_study()
    for size in sizes:
        for lr in np.geomspace(3e-3, 0.3, lrs):
            add(study, size, float(lr))
    return study


def evidence(*sources: optuna.Study) -> Evidence:
    return Evidence(Fields(), sources, allow_weak=False, need=6)


def test_two_workers_that_saw_the_same_hold_the_same_law() -> None:
    study = grown()
    early, late = evidence(), evidence()
    for lr in (0.01, 0.02, 0.04):
        early.read(study)
        add(study, 4e4, lr)
    a, b = early.read(study).law, late.read(study).law
    assert a is not None
    assert a is b  # and it was fitted once in this process


def test_nothing_is_fitted_while_nothing_finishes() -> None:
    study = grown()
    known = evidence()
    known.read(study)
    with patch("metaopt_hpo.scaling.policy.refits._fit", side_effect=AssertionError("fitted again")):
        for _ in range(3):
            study.ask()
            known.read(study)


def test_source_studies_are_read_again_when_they_have_grown() -> None:
    source = grown((1e4, 2e4))
    study = optuna.create_study()
    known = evidence(source)
    assert known.read(study).law is None
    assert "size" in known.read(study).refusal
    for lr in np.geomspace(3e-3, 0.3, 6):
        add(source, 4e4, float(lr))
    assert known.read(study).law is not None


def test_a_study_that_is_gone_is_forgotten() -> None:
    known = evidence()
    known.read(grown())
    gc.collect()
    assert len(known._past) == 0


def test_the_best_of_each_size_and_budget() -> None:
    study = grown()
    history = evidence().read(study).history
    for size in (1e4, 2e4, 4e4):
        assert history.best(size, 4096) == min(t.value for t in study.trials if t.user_attrs["size"] == size)
    assert history.best(4e4, 8192) is None


def test_a_fit_in_a_thread_leaves_the_warning_filters_of_the_process_alone() -> None:
    import threading
    import warnings

    from metaopt_hpo.scaling.policy import refits
    from metaopt_hpo.trials.record import TrialRecord

    before = list(warnings.filters)
    seen = []
    record = TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=-0.123)  # a table warns of this loss
    for i in range(20):
        refits.prepare([record, TrialRecord(size=2e6, tokens=1e8, batch=1e4, lr=1e-3 + i, loss=2.0)], False)
        seen.append(list(warnings.filters))
    for thread in threading.enumerate():
        if thread.name == "metaopt-law":
            thread.join()
    assert all(filters == before for filters in [*seen, list(warnings.filters)])
