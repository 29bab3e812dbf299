"""ScalingLawScheduler: who waits for whom, in which order, why; and what it saves on a simulated cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler
from stub_cluster import StubCluster, result_of, stub_trial
from sweeps import SIZES, curve_of, evidence, found, kept, run, sweep

from metaopt_hpo.scaling import fit
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import ScalingLawScheduler, TuneWarning


def test_large_trials_wait_until_small_ones_have_taught_a_law() -> None:
    scheduler = kept()
    cluster = run(scheduler, 120, slots=16)
    size = {t.trial_id: t.config["size"] for t in cluster.get_trials()}
    first_large = next(i for i, t in enumerate(cluster.started) if size[t] > SIZES[2])
    before = cluster.started[:first_large]
    assert {size[t] for t in before} == set(SIZES[:3])
    assert scheduler.law is not None


def test_an_idle_cluster_still_waits_and_a_refused_law_lets_everything_run() -> None:
    """Two sizes bear no law: after the small ones the large ones run, by cost alone, all of them."""
    scheduler = kept(pilot_sizes=1)
    cluster = StubCluster(scheduler, curve_of, slots=64)
    for i in range(8):
        size = 1e6 if i % 2 else 8e6
        cluster.add(stub_trial(f"t{i}", size=size, tokens=2e7, batch=1e4, lr=10 ** (-4 + 0.3 * i)))
    cluster._fill()
    assert {t.config["size"] for t in cluster.get_trials() if t.status == Trial.RUNNING} == {1e6}
    cluster.run()
    assert len(cluster.started) == 8
    assert scheduler.law is None
    assert "no law" in scheduler.debug_string()


def test_with_a_law_the_promising_and_cheap_are_launched_first_and_the_hopeless_never(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="metaopt_hpo.scaling.policy")
    scheduler = kept(evidence=evidence())
    size, tokens = SIZES[4], 20 * SIZES[4]
    best = 6e-3 * (size / 1e6) ** -0.35
    cluster = StubCluster(scheduler, curve_of, slots=1)
    factors = {"far": 1 / 40, "near": 0.7, "best": 1.0, "high": 30.0}
    for name, factor in factors.items():
        cluster.add(stub_trial(name, size=size, tokens=tokens, batch=1e4, lr=best * factor))
    cluster.run()
    assert cluster.started[0] == "best"
    assert not {"far", "high"} & set(cluster.started)
    reasons = {e.trial: e.reason for e in scheduler.book.entries.values()}
    assert "chance of" in reasons["far"]
    assert any("best: launch" in r.message for r in caplog.records)
    assert any("far: stop" in r.message for r in caplog.records)


def test_trials_the_law_cannot_read_run_as_under_fifo(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = kept()
    cluster = StubCluster(scheduler, lambda t: [(1.0, 2.0), (2.0, 1.9)], slots=2)
    for i in range(4):
        cluster.add(stub_trial(f"t{i}", size=1.0, lr=0.1))
    cluster.run()
    assert len(cluster.started) == 4
    assert caplog.text.count("no tokens, batch in its config") == 1


def test_a_cluster_is_spared_and_nothing_good_is_lost() -> None:
    """300 trials on 64 slots: fewer FLOPs and an earlier end than FIFO and ASHA, and the same best trials."""
    asha = ASHAScheduler(time_attr="training_iteration", max_t=12, grace_period=2, reduction_factor=3)
    asha.set_search_properties("loss", "min")
    runs = {
        "fifo": run(FIFOScheduler(), 300, 64),
        "asha": run(asha, 300, 64),
        "law": run(kept(), 300, 64),
    }
    assert runs["law"].work < 0.6 * min(runs["fifo"].work, runs["asha"].work)
    assert runs["law"].time < min(runs["fifo"].time, runs["asha"].time)
    for size in SIZES[3:]:
        assert found(runs["law"], size) <= found(runs["fifo"], size) * 1.002


def test_fits_in_a_thread_do_the_same_work() -> None:
    scheduler = kept(background=True)
    run(scheduler, 60, slots=8)
    assert scheduler.law is not None
    assert all(e.closed for e in scheduler.book.entries.values())


def test_a_copy_made_during_a_fit_comes_to_a_law_too() -> None:
    """The Tuner pickles the scheduler at once, while the fit to earlier evidence runs in a thread."""
    copy = cloudpickle.loads(cloudpickle.dumps(ScalingLawScheduler(evidence=evidence())))
    deadline = time.monotonic() + 60
    while copy.law is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert copy.law is not None


def test_a_restored_scheduler_knows_the_sizes_that_have_taught_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="metaopt_hpo.scaling.policy")
    scheduler = kept(pilot_sizes=1)
    cluster = StubCluster(scheduler, curve_of, slots=1)
    small = stub_trial("small", size=1e6, tokens=2e7, batch=1e4, lr=3e-3)
    cluster.add(small)
    cluster.run()
    again = kept(pilot_sizes=1)
    again.set_state(scheduler.get_state())
    large = stub_trial("large", size=8e6, tokens=2e7, batch=1e4, lr=3e-3)
    for trial in (small, large):
        again.on_trial_add(cluster, trial)
    assert again.choose_trial_to_run(cluster) is large
    assert "large: launch: no law is to be had" in caplog.text


@pytest.mark.parametrize("loss", [0.0, -0.7])
def test_a_loss_that_is_not_positive_holds_nothing_up(loss: float, caplog: pytest.LogCaptureFixture) -> None:
    """A law is of a positive loss: such a result teaches it nothing and is no goal either."""
    scheduler = kept(law=fit(TrialTable.from_records(evidence())))
    cluster = StubCluster(
        scheduler, lambda t: [(0.5 * t.config["tokens"], 3.0), (t.config["tokens"], loss)], slots=1
    )
    for i in range(3):
        cluster.add(stub_trial(f"t{i}", size=SIZES[4], tokens=20 * SIZES[4], batch=1e4, lr=2e-3))
        cluster.run()
    assert cluster.started == ["t0", "t1", "t2"]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_size_that_only_the_trial_knows_holds_nobody_up() -> None:
    """Reported with the results it is judged by, and it must not stay in the books as a pilot for ever."""
    scheduler = kept(pilot_sizes=1)
    cluster = StubCluster(scheduler, curve_of, slots=2)
    told = stub_trial("told", tokens=2e7, batch=1e4, lr=3e-3)
    scheduler.on_trial_add(cluster, told)
    told.set_status(Trial.RUNNING)
    scheduler.on_trial_result(cluster, told, result_of(told, 2e7, 3.0, size=1e6))
    scheduler.on_trial_complete(cluster, told, {})
    told.set_status(Trial.TERMINATED)
    for i, size in enumerate((1e6, 8e6)):
        cluster.add(stub_trial(f"t{i}", size=size, tokens=2e7, batch=1e4, lr=3e-3))
    cluster.run()
    assert cluster.started == ["t0", "t1"]


def test_a_decision_that_fails_does_not_hold_the_cluster_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = kept(law=fit(TrialTable.from_records(evidence())))
    monkeypatch.setattr("metaopt_hpo.scaling.policy.logged_search.decide", lambda *_, **__: 1 / 0)
    cluster = StubCluster(scheduler, curve_of, slots=4)
    for trial in sweep(12):
        cluster.add(trial)
    cluster.run()
    assert len(cluster.started) == 12
    assert "failed to hold trial" in caplog.text


def test_launches_that_fail_do_not_hold_the_cluster_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = kept(law=fit(TrialTable.from_records(evidence())))
    cluster = StubCluster(scheduler, curve_of, slots=4)
    for trial in sweep(12):
        cluster.add(trial)
    monkeypatch.setattr("metaopt_hpo.scaling.policy.logged_search.decide", lambda *_, **__: 1 / 0)
    cluster.run()
    assert len(cluster.started) == 12
    assert "failed to choose and launches whichever trial waits" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScalingLawScheduler(mode="max"), "mode='min'"),
        (lambda: ScalingLawScheduler(stop_below=1.5), "stop_below"),
        (lambda: ScalingLawScheduler(grace=-1), "grace"),
        (lambda: ScalingLawScheduler(pilot_sizes=0), "pilot_sizes"),
        (lambda: ScalingLawScheduler(size=-3.0), "size"),
        (lambda: ScalingLawScheduler(wrapped=HyperBandScheduler()), "ASHAScheduler"),  # type: ignore[arg-type]
        (lambda: kept().set_search_properties("accuracy", None), "in one place"),
        (lambda: kept().set_search_properties(None, "max"), "mode='min'"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_by_name_with_the_default_columns_and_no_option_is_dropped() -> None:
    assert isinstance(tune.create_scheduler("scaling_law"), ScalingLawScheduler)
    assert tune.create_scheduler("scaling_law", size="n").columns.size == "n"
    with pytest.raises(TypeError, match="sizee"):
        tune.create_scheduler("scaling_law", sizee="n")


def test_without_a_keeper_it_warns_that_restore_is_not_covered() -> None:
    with pytest.warns(TuneWarning, match=r"Tuner\.restore"):
        ScalingLawScheduler().set_search_properties("loss", "min")


def test_with_a_base_two_sizes_are_a_law() -> None:
    scheduler = kept(pilot_sizes=1, base=TrialTable.from_records(evidence()))
    cluster = StubCluster(scheduler, curve_of, slots=64)
    for i in range(8):
        size = 1e6 if i % 2 else 8e6
        cluster.add(stub_trial(f"t{i}", size=size, tokens=2e7, batch=1e4, lr=10 ** (-4 + 0.3 * i)))
    cluster.run()
    assert scheduler.law is not None
