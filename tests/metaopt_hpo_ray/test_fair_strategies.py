"""Every strategy that is judged at its end, over every base, beside tuned runs under every scheduler of Tune's.

Reports are made up: a tuned run falls from its start, the other stands high until its last report and wins. No
scheduler may stop the latter, nor exchange its weights with another strategy's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    AsyncHyperBandScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from stub_cluster import Curve, StubCluster, result_of, stub_trial

from metaopt_hpo.strategies import LRStrategy, available, get, register, registry
from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler
from metaopt_hpo_ray import fair as fair_module
from metaopt_hpo_ray.fair import Fair

THIRD_PARTY, NEEDS_A_WORD, ELSEWHERE = "somebody-elses", "with-an-option", "known-to-workers-only"
"""Registered for these tests, as another package's would be; the last is not registered where the scheduler runs."""

REPORTS = 10
TIMES = {"time_attr": "training_iteration"}
LATE = [n for n in available() if get(n).tunes_lr or n == "wsd"]
ALL_BASES = sorted({base for n in LATE for base in get(n).bases})
EVERY = [*available(), THIRD_PARTY, NEEDS_A_WORD]


@pytest.fixture(autouse=True)
def third_parties(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class SomebodyElses(LRStrategy):
        tunes_lr = True

    class WithAnOption(LRStrategy):
        tunes_lr = True

        def __init__(self, word: str) -> None:
            super().__init__()

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register(THIRD_PARTY)(SomebodyElses)
    register(NEEDS_A_WORD)(WithAnOption)
    fair_module.is_late.cache_clear()
    yield
    registry.tuning_of.cache_clear()
    fair_module.is_late.cache_clear()


class Population(PopulationBasedTraining):
    """Notes who would copy whose weights instead of copying."""

    copied: list[tuple[str, str]]

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial], lower_quantile: list[Trial]
    ) -> None:
        if trial in lower_quantile:
            self.copied += [(trial.config["strategy"], t.config["strategy"]) for t in upper_quantile]


def population(synch: bool) -> PopulationBasedTraining:
    made = Population(
        **TIMES,
        perturbation_interval=2,
        synch=synch,
        hyperparam_mutations={"lr": tune.loguniform(1e-3, 1e-1)},
    )
    made.copied = []
    return made


MAKERS: dict[str, Callable[[], TrialScheduler]] = {
    "asha": lambda: ASHAScheduler(**TIMES, grace_period=1, max_t=100, reduction_factor=2),
    "async hyperband": lambda: AsyncHyperBandScheduler(**TIMES, grace_period=1, max_t=100, brackets=2),
    "hyperband": lambda: HyperBandScheduler(max_t=REPORTS, reduction_factor=2),
    "median": lambda: MedianStoppingRule(**TIMES, grace_period=1, min_samples_required=2, min_time_slice=99),
    "pbt": lambda: population(synch=False),
    "pbt, in step": lambda: population(synch=True),
}


def curve_of(trial: Trial) -> Curve:
    late = trial.config["strategy"] != "cosine"
    return [
        (2e6 * k, (9.0 if k < REPORTS else 1.0) if late else 4.0 - 0.1 * k + 0.01 * int(trial.trial_id[-1]))
        for k in range(1, REPORTS + 1)
    ]


def mixed(scheduler: TrialScheduler, late: list[tuple[str, str]]) -> dict[str, int]:
    """Eight tuned trials with one of each of those strategies among them: reports that each trial made."""
    np.random.seed(0)  # noqa: NPY002  asynchronous HyperBand draws its brackets from the global generator
    scheduler.set_search_properties("loss", "min")
    cluster = StubCluster(scheduler, curve_of, slots=100)
    cluster.search_alg = None  # type: ignore[attr-defined]  # population based training looks for one
    facts = {"size": 1e6, "tokens": 2e7, "batch": 1e4, "lr": 1e-2}
    tuned = [stub_trial(f"t{i}", **facts, strategy="cosine") for i in range(8)]
    others = [stub_trial(f"{n}-{b}-0", **facts, strategy=n, base=b) for n, b in late]
    for trial in itertools.chain(tuned[:5], others, tuned[5:]):
        cluster.add(trial)
    cluster.run()
    return {t.trial_id: t.last_result["training_iteration"] for t in cluster.get_trials()}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("base", ALL_BASES)
def test_no_scheduler_stops_or_mixes_a_run_that_is_judged_at_its_end(name: str, base: str) -> None:
    late = [(n, base) for n in LATE if base in get(n).bases]
    if base == "adamw":
        late += [(THIRD_PARTY, base), (NEEDS_A_WORD, base)]
    given = MAKERS[name]()
    made = mixed(Fair(given), late)
    assert {t: n for t, n in made.items() if not t.startswith("t")} == {
        f"{n}-{b}-0": REPORTS for n, b in late
    }
    if isinstance(given, Population):
        assert given.copied
        assert set(given.copied) == {("cosine", "cosine")}
    else:
        assert any(made[f"t{i}"] < REPORTS for i in range(8)) or name == "median", (
            "tuned ones are still stopped"
        )


@pytest.mark.parametrize("name", MAKERS)
def test_beside_the_schedulers_as_they_are_it_is_stopped_or_overwritten(name: str) -> None:
    """So the test above holds something."""
    given = MAKERS[name]()
    made = mixed(given, [("metaoptimize", "adamw")])
    if isinstance(given, Population):
        assert ("metaoptimize", "cosine") in given.copied
    else:
        assert made["metaoptimize-adamw-0"] < REPORTS


@pytest.mark.parametrize("name", ["asha", "async hyperband"])
def test_an_inner_scheduler_of_the_law_stops_none_of_them_either(name: str) -> None:
    scheduler = ScalingLawScheduler(background=False, hold=False, grace=0.0, wrapped=MAKERS[name]())
    JournalCallback(scheduler)
    pairs = [(n, base) for n in LATE for base in get(n).bases] + [(THIRD_PARTY, "adamw")]
    made = mixed(scheduler, pairs)
    assert {made[f"{n}-{b}-0"] for n, b in pairs} == {REPORTS}


@pytest.mark.parametrize("said", [{"strategy": ELSEWHERE, "tuning": "self"}, {"tuning": "self"}])
def test_a_strategy_that_only_the_worker_knows_says_so_in_its_report(said: dict[str, str]) -> None:
    fair = Fair(MAKERS["asha"]())
    fair.set_search_properties("loss", "min")
    cluster = StubCluster(fair, curve_of, slots=9)
    decisions = []
    for i in range(5):
        trial = stub_trial(f"t{i}", strategy=ELSEWHERE if i == 4 else "cosine")
        cluster.add(trial)
        more = said if i == 4 else {}
        result = {**result_of(trial, 1.0, 2.0 + i), "training_iteration": 4, **more}
        decisions.append(fair.on_trial_result(cluster, trial, result))
    assert decisions[-2:] == [TrialScheduler.STOP, TrialScheduler.CONTINUE]


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("name", ["asha", "median"])
def test_like_runs_are_still_compared(name: str, strategy: str) -> None:
    fair = Fair(MAKERS[name]())
    fair.set_search_properties("loss", "min")
    cluster = StubCluster(fair, curve_of, slots=9)
    for i in range(6):
        trial = stub_trial(f"t{i}", strategy=strategy)
        cluster.add(trial)
        for k in range(1, 9):
            result = {**result_of(trial, float(k), 9.0 if i == 5 else 2.0), "training_iteration": k}
            decision = fair.on_trial_result(cluster, trial, result)
            if decision == TrialScheduler.STOP:
                assert i == 5
                return
    pytest.fail("the one that is far worse than its like was let go on")
