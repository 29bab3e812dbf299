"""ScalingLawScheduler: which trials are stopped or never launched, and which are let finish all the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from stub_cluster import Curve, StubCluster, result_of, stub_trial, world_loss
from sweeps import SIZES, curve_of, evidence, kept, sweep

from metaopt_hpo.scaling import fit
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import ScalingLawScheduler


def test_a_running_trial_is_stopped_by_its_curve_with_the_reason_in_the_table() -> None:
    scheduler = kept(evidence=evidence(), hold=False)
    size, tokens = SIZES[3], 20 * SIZES[3]
    cluster = StubCluster(scheduler, curve_of, slots=1)
    cluster.add(stub_trial("rival", size=size, tokens=tokens, batch=1e4, lr=3e-3))
    cluster.run()
    trial = stub_trial("t", size=size, tokens=tokens, batch=1e4, lr=3e-3)
    cluster.add(trial)
    trial.set_status(Trial.RUNNING)
    bad = world_loss(size, tokens / 2, 3e-3) * 1.3
    assert scheduler.on_trial_result(cluster, trial, result_of(trial, tokens / 2, bad)) == TrialScheduler.STOP
    entry = scheduler.book.entries["t"]
    assert entry.state == "pruned"
    assert "chance of" in entry.reason


def test_a_stop_that_tune_forgot_in_a_restore_is_repeated() -> None:
    scheduler = kept(hold=False)
    cluster = StubCluster(scheduler, curve_of, slots=1)
    trial = stub_trial("t", size=1e6, tokens=2e7, batch=1e4, lr=3e-3)
    cluster.add(trial)
    trial.set_status(Trial.RUNNING)
    scheduler.on_trial_result(cluster, trial, result_of(trial, 1e6, float("nan")))
    again = kept(hold=False)
    again.set_state(scheduler.get_state())
    trial.set_status(Trial.PENDING)
    again.on_trial_add(cluster, trial)
    trial.set_status(Trial.RUNNING)
    result = result_of(trial, 5e5, 3.0)
    assert again.on_trial_result(cluster, trial, result) == TrialScheduler.STOP


def test_grace_protects_a_young_trial() -> None:
    scheduler = kept(evidence=evidence(), hold=False, grace=0.6)
    trial = stub_trial("t", size=SIZES[3], tokens=20 * SIZES[3], batch=1e4, lr=3e-3)
    cluster = StubCluster(scheduler, curve_of, slots=1)
    cluster.add(trial)
    trial.set_status(Trial.RUNNING)
    result = result_of(trial, 10 * SIZES[3], 100.0)
    assert scheduler.on_trial_result(cluster, trial, result) == TrialScheduler.CONTINUE


def test_an_inner_asha_stops_only_where_the_law_cannot_judge() -> None:
    def decide(**options: Any) -> str:
        asha = ASHAScheduler(time_attr="tokens_seen", grace_period=1, max_t=1e12, reduction_factor=2)
        scheduler = kept(wrapped=asha, hold=False, grace=0.0, **options)
        cluster = StubCluster(scheduler, curve_of, slots=9)
        last = ""
        half = 10 * SIZES[3]
        usual = world_loss(SIZES[3], half, 3e-3)
        for i, loss in enumerate((usual, usual, usual, 1.005 * usual)):
            trial = stub_trial(f"t{i}", size=SIZES[3], tokens=20 * SIZES[3], batch=1e4, lr=3e-3)
            cluster.add(trial)
            trial.set_status(Trial.RUNNING)
            last = scheduler.on_trial_result(cluster, trial, result_of(trial, half, loss))
        return last

    assert decide() == TrialScheduler.STOP
    assert decide(law=fit(TrialTable.from_records(evidence()))) == TrialScheduler.CONTINUE


def rival(scheduler: ScalingLawScheduler, slots: int) -> StubCluster:
    """A cluster on which one trial has finished."""
    cluster = StubCluster(scheduler, curve_of, slots=slots)
    cluster.add(stub_trial("rival", size=SIZES[4], tokens=20 * SIZES[4], batch=1e4, lr=2e-3))
    cluster.run()
    return cluster


def hopeless(count: int) -> list[Trial]:
    """Trials t0, t1, … of the rival's size that the law gives no chance."""
    return [
        stub_trial(f"t{i}", size=SIZES[4], tokens=20 * SIZES[4], batch=1e4, lr=1e-4 * (1 - 1e-3 * i))
        for i in range(count)
    ]


def test_after_five_that_were_not_launched_the_next_is_let_finish(caplog: pytest.LogCaptureFixture) -> None:
    """A law that refuses everything would never learn that it is wrong. However wide the cluster, the others are
    refused meanwhile."""
    caplog.set_level(logging.DEBUG, logger="metaopt_hpo.scaling.policy")
    scheduler = kept(law=fit(TrialTable.from_records(evidence())))
    cluster = rival(scheduler, slots=16)
    for trial in hopeless(13):
        cluster.add(trial)
    cluster.run()
    assert cluster.started == ["rival", "t5"]
    assert scheduler.book.entries["t5"].state == "complete"
    assert any("t5: launch: let finish after 5 stops in a row" in r.message for r in caplog.records)


def test_one_at_a_time_every_sixth_hopeless_trial_is_let_finish() -> None:
    cluster = rival(kept(law=fit(TrialTable.from_records(evidence()))), slots=1)
    for trial in hopeless(13):
        cluster.add(trial)
        cluster.run()
    assert cluster.started == ["rival", "t5", "t11"]


def test_a_running_trial_is_let_finish_too_and_a_restore_knows_how_many_were_stopped() -> None:
    def begin(scheduler: ScalingLawScheduler, key: str) -> Trial:
        trial = stub_trial(key, size=SIZES[3], tokens=20 * SIZES[3], batch=1e4, lr=3e-3)
        scheduler.on_trial_add(cluster, trial)
        trial.set_status(Trial.RUNNING)
        return trial

    def report(scheduler: ScalingLawScheduler, trial: Trial, part: float) -> str:
        tokens = 20 * SIZES[3] * part
        return scheduler.on_trial_result(
            cluster, trial, result_of(trial, tokens, 1.3 * world_loss(SIZES[3], tokens, 3e-3))
        )

    scheduler = kept(evidence=evidence(), hold=False)
    cluster = StubCluster(scheduler, curve_of, slots=1)
    cluster.add(stub_trial("rival", size=SIZES[3], tokens=20 * SIZES[3], batch=1e4, lr=3e-3))
    cluster.run()
    for i in range(5):
        trial = begin(scheduler, f"t{i}")
        assert report(scheduler, trial, 0.5) == TrialScheduler.STOP
        scheduler.on_trial_complete(cluster, trial, {})
        again = kept(evidence=evidence(), hold=False)
        again.set_state(scheduler.get_state())
        scheduler = again
    spared, other = begin(scheduler, "spared"), begin(scheduler, "other")
    assert report(scheduler, spared, 0.5) == TrialScheduler.CONTINUE
    assert report(scheduler, other, 0.5) == TrialScheduler.STOP
    again = kept(evidence=evidence(), hold=False)
    again.set_state(scheduler.get_state())
    assert report(again, spared, 0.8) == TrialScheduler.CONTINUE
    assert report(again, begin(again, "meanwhile"), 0.5) == TrialScheduler.STOP
    diverged = result_of(spared, 18 * SIZES[3], float("nan"))
    assert again.on_trial_result(cluster, spared, diverged) == TrialScheduler.STOP
    again.on_trial_complete(cluster, spared, diverged)
    assert report(again, begin(again, "next"), 0.5) == TrialScheduler.CONTINUE, "it taught nothing"


def test_a_strategy_that_finds_its_own_lr_is_not_judged_by_it() -> None:
    """Its lr is only where the step size starts, which the law has no opinion on."""
    scheduler = kept(law=fit(TrialTable.from_records(evidence())), grace=0.0)
    cluster = rival(scheduler, slots=1)
    cluster.add(stub_trial("own", **hopeless(1)[0].config, strategy="metaoptimize"))
    cluster.run()
    assert cluster.started == ["rival", "own"]
    assert scheduler.book.entries["own"].state == "complete"


def test_curves_teach_how_far_a_run_still_falls() -> None:
    """A run whose lr has yet to decay is far above finished ones of as many tokens, and no worse for it."""

    def hot(trial: Trial) -> Curve:
        curve = curve_of(trial)
        return [(t, loss * 1.2) for t, loss in curve[:-1]] + [curve[-1]]

    scheduler = kept(hold=False, grace=0.0)
    cluster = StubCluster(scheduler, hot, slots=1)
    for trial in sweep(60):
        cluster.add(trial)
    cluster.run()
    best = 6e-3 * 8**-0.35
    good = stub_trial("good", size=SIZES[3], tokens=20 * SIZES[3], batch=1e4, lr=best)
    cluster.add(good)
    cluster.run()
    assert scheduler.law is not None
    assert scheduler.law.fall is not None
    assert scheduler.book.entries["good"].state == "complete"
