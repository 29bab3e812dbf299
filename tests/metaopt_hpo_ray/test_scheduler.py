"""ScalingLawScheduler: who waits for whom, in which order, why; and what it saves on a simulated cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler
from stub_cluster import Curve, StubCluster, result_of, stub_trial, world_curve, world_loss

from metaopt_hpo.scaling import fit
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler, TuneWarning

SIZES = tuple(1e6 * 2**k for k in range(6))


def kept(**options: Any) -> ScalingLawScheduler:
    scheduler = ScalingLawScheduler(**{"background": False, **options})
    JournalCallback(scheduler)
    scheduler.set_search_properties("loss", "min")
    return scheduler


def sweep(count: int, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        size = SIZES[int(rng.integers(6))]
        lr, noise = float(10 ** rng.uniform(-4, -1)), float(0.003 * rng.standard_normal())
        out.append(stub_trial(f"t{i:05d}", size=size, tokens=20 * size, batch=1e4, lr=lr, noise=noise))
    return out


def curve_of(trial: Trial) -> Curve:
    c = trial.config
    return world_curve(c["size"], c["tokens"], c["lr"], c.get("noise", 0.0))


def run(scheduler: TrialScheduler, count: int, slots: int, seed: int = 0) -> StubCluster:
    cluster = StubCluster(scheduler, curve_of, slots=slots)
    for trial in sweep(count, seed):
        cluster.add(trial)
    cluster.run()
    return cluster


def found(cluster: StubCluster, size: float) -> float:
    """The lowest final loss among trials of this size that ran to their end."""
    done = [
        t.last_result["loss"]
        for t in cluster.get_trials()
        if t.config["size"] == size and t.last_result.get("tokens_seen") == t.config["tokens"]
    ]
    return min(done)


def evidence() -> list[TrialRecord]:
    return [
        TrialRecord(
            size=s, tokens=20 * s, batch=1e4, lr=lr, loss=world_loss(s, 20 * s, lr), trial=f"{s}-{lr}"
        )
        for s in SIZES[:4]
        for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    ]


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


# -- a law that may be wrong -----------------------------------------------------------------------------------


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


# -- what a law is asked and taught --------------------------------------------------------------------------


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


# -- bad input -----------------------------------------------------------------------------------------------


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
