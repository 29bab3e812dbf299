"""A run that finds its own learning rate is compared with what it may be compared with, whatever the pruner.

And what keeps a law from being used is said once, at the moment; a trial that cannot be read is left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import TrialState
from torch import nn

from metaopt_hpo.strategies import LRStrategy, available, get, register, registry
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, StudyWarning, TrialRun, trial_table
from metaopt_hpo_optuna.fields import COMPARABLE
from metaopt_hpo_optuna.strategy import repeat_seed, suggest_strategy
from metaopt_hpo_optuna.trial_link import TrialLink

TOKENS, BATCH, SIZE = 4096, 16, 100.0
GRID = [32, 64, 128, 256, 512, 1024, 2048]
THIRD_PARTY = "somebody-elses"
"""Registered for these tests only, as another package's would be."""

SELF = [*(n for n in available() if get(n).tunes_lr), THIRD_PARTY]


def over_their_bases(names: list[str]) -> list[tuple[str, str]]:
    """Each strategy over each base rule it accepts."""
    return [(n, base) for n in names for base in (() if n == THIRD_PARTY else get(n).bases) or ("adamw",)]


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class SomebodyElses(LRStrategy):
        tunes_lr = True

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register(THIRD_PARTY)(SomebodyElses)
    yield
    registry.tuning_of.cache_clear()


P = optuna.pruners
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": P.MedianPruner,
    "percentile": lambda: P.PercentilePruner(25.0),
    "halving": P.SuccessiveHalvingPruner,
    "hyperband": lambda: P.HyperbandPruner(min_resource=16, max_resource=TOKENS),
    "patient": lambda: P.PatientPruner(P.MedianPruner(), patience=0),
    "wilcoxon": P.WilcoxonPruner,
    "law over median": lambda: ScalingLawPruner(wrapped=P.MedianPruner()),
    "law over halving": lambda: ScalingLawPruner(wrapped=P.SuccessiveHalvingPruner()),
}


def answers(study: Study, strategy: str, losses: list[float], base: str = "adamw") -> list[bool]:
    """What the pruner says of a trial after each report."""
    trial = study.ask()
    link = TrialLink(trial)
    link.describe({"size": SIZE, "tokens": TOKENS, "batch": BATCH, "lr": 0.1})
    cls = get(strategy)
    link.describe_strategy(
        strategy,
        tuning="self" if cls.tunes_lr else "external",
        comparable_from=cls(base=base).comparable_from,
    )
    link.begin()
    said = []
    for t, loss in zip(GRID, losses, strict=True):
        link.report(t, loss)
        said.append(link.ask(t, loss) is not None)
        if said[-1]:
            study.tell(trial, state=TrialState.PRUNED)
            return said
    study.tell(trial, losses[-1])
    return said


@pytest.mark.filterwarnings("ignore:completed trials of study .* are taken for")
@pytest.mark.filterwarnings("ignore:.*experimental.*")
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize(("strategy", "base"), over_their_bases([*SELF, "wsd"]))
def test_no_pruner_stops_a_run_for_starting_low_or_settling_late(
    pruner: str, strategy: str, base: str
) -> None:
    study = optuna.create_study(pruner=PRUNERS[pruner]())
    for i in range(6):
        answers(study, "cosine", [3.0 - 0.3 * k + 0.001 * i for k in range(len(GRID))])
    assert not any(answers(study, strategy, [9.0 - 0.9 * k for k in range(len(GRID))], base))


def test_those_that_tune_their_own_are_all_there() -> None:
    assert {"metaoptimize", "adamg", "prodigy", "prodigy-schedule-free", THIRD_PARTY} <= set(SELF)


@pytest.mark.parametrize("strategy", available())
def test_a_tuned_run_is_still_stopped_and_like_runs_compare(strategy: str) -> None:
    for _, base in over_their_bases([strategy]):
        study = optuna.create_study(pruner=P.MedianPruner())
        for _ in range(6):
            answers(study, strategy, [3.0 - 0.3 * k for k in range(len(GRID))], base)
        assert any(answers(study, strategy, [9.0] * len(GRID), base))


def test_runs_that_start_low_do_not_raise_the_bar_for_tuned_ones() -> None:
    study = optuna.create_study(pruner=P.MedianPruner())
    for _ in range(6):
        answers(study, "metaoptimize", [1.0] * len(GRID))
    assert not any(answers(study, "cosine", [3.0 - 0.3 * k for k in range(len(GRID))]))


# -- repeats -------------------------------------------------------------------------------------------------


def train(trial: optuna.Trial, trained: list[int], **options: Any) -> float:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    strategy = suggest_strategy(trial, {"metaoptimize": {}, "cosine": {"lr": (1e-3, 1e-1)}})
    x = torch.randn(64, 4)

    def loss() -> torch.Tensor:
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    with TrialRun(trial, model, strategy, size=5, tokens=640, batch=64, evaluate=loss, **options) as run:
        for _ in run:
            if run.steps_taken == 0:
                trained.append(trial.number)
            run.step(loss())
    return run.value


def repeat(count: int, **options: Any) -> tuple[Study, list[int]]:
    study, trained = optuna.create_study(), list[int]()
    for _ in range(count):
        study.enqueue_trial({"strategy": "metaoptimize"})
    study.optimize(lambda t: train(t, trained, **options), n_trials=count)
    return study, trained


def test_a_configuration_without_free_numbers_is_trained_once_a_seed() -> None:
    study, trained = repeat(4)
    assert trained == [0]
    assert len({t.value for t in study.trials}) == 1
    assert len(trial_table(study)) == 1, "what was not trained is no row"
    more: list[int] = []
    study.enqueue_trial({"strategy": "metaoptimize"})
    study.optimize(lambda t: train(t, more, seed=1), n_trials=1)
    assert more == [4], "another seed is another run"


def test_repeats_are_trained_where_the_user_says_so() -> None:
    assert repeat(3, repeats="train")[1] == [0, 1, 2]
    with pytest.raises(ValueError, match="repeats must be"):
        repeat(1, repeats="again")


def test_repeats_vary_their_seed_where_the_user_asks() -> None:
    study, seeds, trained = optuna.create_study(), list[int](), list[int]()

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("strategy", ["metaoptimize", "cosine"])
        seeds.append(repeat_seed(trial))
        return train(trial, trained, seed=seeds[-1])

    for _ in range(3):
        study.enqueue_trial({"strategy": "metaoptimize"})
    study.optimize(objective, n_trials=3)
    assert seeds == trained == [0, 1, 2]


def test_a_free_number_makes_another_run() -> None:
    study, trained = optuna.create_study(), list[int]()
    for _ in range(2):
        study.enqueue_trial({"strategy": "cosine", "lr": 0.01})
    study.optimize(lambda t: train(t, trained), n_trials=2)
    assert trained == [0, 1]


def test_what_was_found_stands_in_the_trial() -> None:
    study, _ = repeat(1)
    attrs = study.trials[0].user_attrs
    assert attrs["tuning"] == "self"
    assert attrs[COMPARABLE] == 1.0
    assert attrs["found_lr"] > 0
    assert trial_table(study).records()[0].self_tuning


# -- said once, at the moment --------------------------------------------------------------------------------


def said_of(make: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make()
    return [str(w.message) for w in said if issubclass(w.category, StudyWarning)]


def epochs(first: int, per_epoch: float | None) -> tuple[Study, list[str]]:
    study = optuna.create_study(pruner=ScalingLawPruner())

    def objective(trial: optuna.Trial) -> float:
        facts = {"size": 1e6 * 4 ** (trial.number % 3), "tokens": 2e7, "batch": 65536, "lr": 0.01}
        for name, value in facts.items():
            trial.set_user_attr(name, value)
        if per_epoch is not None:
            trial.set_user_attr("tokens_per_epoch", per_epoch)
        for e in range(10):
            trial.report(3.0 - 0.1 * e, e + first)
            assert trial.should_prune() is False
        return 2.0

    return study, said_of(lambda: study.optimize(objective, n_trials=3))


@pytest.mark.parametrize("first", [0, 1])
def test_epochs_are_said_once_or_counted_where_their_tokens_are_known(first: int) -> None:
    _, said = epochs(first, None)
    assert len(said) == 1
    assert "tokens_per_epoch" in said[0]
    study, said = epochs(first, 2e6)
    assert said == []
    curve = trial_table(study).records()[0].curve
    assert curve is not None
    assert curve.tokens == tuple(2e6 * (e + 1) for e in range(10))


HOSTILE: list[dict[str, Any]] = [
    {"size": -1, "tokens": 1e6, "batch": 32},
    {"size": math.nan, "tokens": 1e6, "batch": 32},
    {"size": "7B", "tokens": 1e6, "batch": 32},
    {"size": 1e6, "tokens": math.inf, "batch": 32},
    {"metaopt:record": {"size": -1, "tokens": 1, "batch": 1, "lr": 1, "loss": 1}},
    {
        "metaopt:record": {
            "size": 1e6,
            "tokens": 1,
            "batch": 1,
            "lr": 1,
            "loss": 1,
            "curve": {"tokens": [2, 1]},
        }
    },
    {"metaopt:record": "rm -rf /"},
    {"metaopt:record": {"size": 1e6, "tokens": 1, "batch": 1, "lr": 1, "loss": 1, "state": 7}},
]


@pytest.mark.parametrize("attrs", HOSTILE)
@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_trial_that_cannot_be_read_is_left_out_by_every_worker_alike(
    attrs: dict[str, Any], state: TrialState
) -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage).add_trial(
        optuna.create_trial(
            state=state,
            value=2.0,
            params={"lr": 0.01},
            distributions={"lr": FloatDistribution(1e-4, 1e-1, log=True)},
            user_attrs=attrs,
        )
    )
    for _ in range(2):  # workers
        study = optuna.load_study(
            study_name="s", storage=storage, sampler=ScalingLawSampler(seed=0), pruner=ScalingLawPruner()
        )

        def work(study: Study = study) -> None:
            for _ in range(2):
                trial = study.ask()
                for name, value in {"size": 1e6, "tokens": 2e7, "batch": 32.0}.items():
                    trial.set_user_attr(name, value)
                trial.suggest_float("lr", 1e-4, 1e-1, log=True)
                trial.report(3.0, 10**7)
                assert trial.should_prune() is False
                study.tell(trial, 2.9)

        said = said_of(work)
        assert sum("trial 0 for one" in s for s in said) in (1, 2)  # the sampler's, and the pruner's
