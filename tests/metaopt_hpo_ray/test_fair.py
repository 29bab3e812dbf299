"""Fair: a run that settles late is compared with its own kind, under every scheduler of Tune's that compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from stub_cluster import Curve, StubCluster, stub_trial

from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler, tuner_configs
from metaopt_hpo_ray.fair import Fair

TIMES = {"time_attr": "training_iteration"}
MAKERS = {
    "asha": lambda: ASHAScheduler(**TIMES, grace_period=1, max_t=100, reduction_factor=2),
    "async": lambda: AsyncHyperBandScheduler(**TIMES, grace_period=1, max_t=100, brackets=2),
    "median": lambda: MedianStoppingRule(**TIMES, grace_period=1, min_samples_required=2, min_time_slice=99),
}
SPACE = {"size": 1e6, "tokens": 2e7, "batch": 1e4, "lr": 1e-2}


def curve_of(trial: Trial) -> Curve:
    """A tuned run falls from the start; one that finds its lr stands high until its end, and wins."""
    late = trial.config["strategy"] == "metaoptimize"
    return [(2e6 * k, (9.0 if k < 10 else 2.0) if late else 4.0 - 0.1 * k) for k in range(1, 11)]


def run(scheduler: TrialScheduler, strategies: list[str]) -> dict[str, float]:
    """Trial → loss at which it ended."""
    np.random.seed(0)  # noqa: NPY002  asynchronous HyperBand draws its brackets from the global generator
    scheduler.set_search_properties("loss", "min")
    cluster = StubCluster(scheduler, curve_of, slots=3)
    for i, strategy in enumerate(strategies):
        cluster.add(stub_trial(f"{strategy}-{i}", **SPACE, strategy=strategy))
    cluster.run()
    return {t.trial_id: t.last_result["loss"] for t in cluster.get_trials()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_that_finds_its_lr_is_stopped_by_tunes_scheduler_and_not_by_a_fair_one(name: str) -> None:
    mixed = ["cosine", "cosine", "cosine", "metaoptimize", "cosine", "metaoptimize"]
    assert run(MAKERS[name](), mixed)["metaoptimize-3"] == 9.0
    assert run(Fair(MAKERS[name]()), mixed)["metaoptimize-3"] == 2.0


@pytest.mark.parametrize("name", MAKERS)
def test_alone_a_strategy_is_judged_by_the_very_scheduler_that_was_given(name: str) -> None:
    given = MAKERS[name]()
    fair = Fair(given)
    run(fair, ["cosine"] * 6)
    assert fair.debug_string() == given.debug_string()
    assert run(MAKERS[name](), ["cosine"] * 6) == run(Fair(MAKERS[name]()), ["cosine"] * 6)


def test_a_run_that_says_only_in_its_reports_what_it_is_goes_on() -> None:
    fair = Fair(MAKERS["asha"]())
    fair.set_search_properties("loss", "min")
    cluster = StubCluster(fair, curve_of, slots=9)
    decisions = []
    for i in range(4):
        trial = stub_trial(f"t{i}", **SPACE)
        cluster.add(trial)
        more = {"strategy": "metaoptimize"} if i == 3 else {}
        result = {"training_iteration": 2, "loss": 9.0 if i == 3 else 2.0, **more}
        decisions.append(fair.on_trial_result(cluster, trial, result))
    assert decisions[-1] == TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    "scheduler",
    [
        HyperBandScheduler(max_t=9),
        PopulationBasedTraining(hyperparam_mutations={"lr": tune.loguniform(1e-3, 1e-1)}),
        *(make() for make in MAKERS.values()),
    ],
    ids=lambda s: type(s).__name__,
)
def test_wiring_makes_every_scheduler_that_compares_fair(scheduler: Any) -> None:
    configs = tuner_configs(param_space=SPACE, scheduler=scheduler, num_to_keep=4)
    wired = configs["tune_config"].scheduler
    assert isinstance(wired, Fair)
    assert wired.given is scheduler
    copy = cloudpickle.loads(cloudpickle.dumps(wired))
    assert copy.set_search_properties("loss", "min")
    assert copy.metric == "loss"
    assert copy.supports_buffered_results == scheduler.supports_buffered_results


@pytest.mark.parametrize(
    "scheduler", [FIFOScheduler(), ScalingLawScheduler()], ids=lambda s: type(s).__name__
)
def test_others_are_left_as_they_are(scheduler: Any) -> None:
    assert tuner_configs(param_space=SPACE, scheduler=scheduler)["tune_config"].scheduler is scheduler


def test_an_inner_asha_compares_at_equal_tokens_and_within_a_size() -> None:
    """Reports of a small batch come later in tokens; its iterations say nothing. Nor does another size's loss."""
    scheduler = ScalingLawScheduler(
        background=False,
        hold=False,
        grace=0.0,
        wrapped=ASHAScheduler(grace_period=10, max_t=100, reduction_factor=2),
    )
    JournalCallback(scheduler)
    scheduler.set_search_properties("loss", "min")
    cluster = StubCluster(scheduler, curve_of, slots=9)

    def decide(key: str, tokens: float, loss: float, **config: Any) -> str:
        trial = stub_trial(key, **{**SPACE, "strategy": "cosine", **config})
        cluster.add(trial)
        trial.set_status(Trial.RUNNING)
        return scheduler.on_trial_result(
            cluster, trial, {"training_iteration": 50, "tokens_seen": tokens, "loss": loss}
        )

    for i in range(3):
        assert decide(f"t{i}", 1e7, 3.0) == TrialScheduler.CONTINUE
    assert decide("few tokens", 1e6, 9.0) == TrialScheduler.CONTINUE
    assert decide("small", 1e7, 9.0, size=1e5) == TrialScheduler.CONTINUE
    assert decide("late", 1e7, 9.0, strategy="metaoptimize") == TrialScheduler.CONTINUE
    assert decide("bad", 1e7, 9.0) == TrialScheduler.STOP
    again = ScalingLawScheduler(
        background=False,
        hold=False,
        grace=0.0,
        wrapped=ASHAScheduler(grace_period=10, max_t=100, reduction_factor=2),
    )
    JournalCallback(again)
    again.set_search_properties("loss", "min")
    again.set_state(scheduler.get_state())
    scheduler = again
    assert decide("bad too", 1e7, 9.0) == TrialScheduler.STOP, "what it knew follows from the book"
