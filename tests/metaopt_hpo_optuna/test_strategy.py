"""suggest_strategy: a conditional space in every way Optuna can run a trial."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution

from metaopt_hpo.strategies import UnknownStrategy
from metaopt_hpo_optuna import suggest_strategy

SPACE = {
    "metaoptimize": {},
    "cosine": {"lr": (1e-4, 1e-1), "warmup": [0.0, 0.05]},
    "wsd": {"lr": (1e-3, 1.0), "cooldown": (0.1, 0.5), "weight_decay": 0.05},
}


def test_the_lr_is_a_parameter_only_where_it_is_needed() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {}

    def objective(trial: optuna.Trial) -> float:
        strategy = suggest_strategy(trial, SPACE)
        seen[strategy.name] = (strategy, trial.params)
        return 0.0

    study.optimize(objective, n_trials=20)
    assert set(seen) == set(SPACE)
    assert set(seen["metaoptimize"][1]) == {"strategy"}
    assert set(seen["cosine"][1]) == {"strategy", "lr", "cosine.warmup"}
    assert set(seen["wsd"][1]) == {"strategy", "lr", "wsd.cooldown"}
    strategy, params = seen["wsd"]
    assert (strategy.lr, strategy.cooldown) == (params["lr"], params["wsd.cooldown"])
    assert strategy.weight_decay == 0.05


def test_lr_is_searched_in_the_logarithm_and_distributions_are_taken_as_they_are() -> None:
    study = optuna.create_study()
    trial = study.ask()
    step = FloatDistribution(0.0, 0.3, step=0.1)
    suggest_strategy(trial, {"cosine": {"lr": (1e-4, 1e-1), "warmup": step, "final": (0.0, 0.1)}})
    assert trial.distributions["lr"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert trial.distributions["cosine.warmup"] == step
    assert trial.distributions["cosine.final"] == FloatDistribution(0.0, 0.1)
    assert trial.distributions["strategy"] == CategoricalDistribution(["cosine"])


def test_enqueued_fixed_and_asked_trials() -> None:
    values = {"strategy": "cosine", "lr": 0.01, "cosine.warmup": 0.05}
    study = optuna.create_study()
    study.enqueue_trial(values)
    enqueued = suggest_strategy(study.ask(), SPACE)
    fixed = suggest_strategy(optuna.trial.FixedTrial(values), SPACE)
    asked = study.ask({"strategy": CategoricalDistribution(list(SPACE))})
    assert enqueued == fixed
    assert (enqueued.name, enqueued.lr, enqueued.warmup) == ("cosine", 0.01, 0.05)  # type: ignore[attr-defined]
    assert suggest_strategy(asked, SPACE).name == asked.params["strategy"]


def test_an_extrapolated_lr_can_be_enqueued() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"strategy": "cosine", "lr": 2.0})
    with pytest.warns(UserWarning, match="out of range"):
        assert suggest_strategy(study.ask(), {"cosine": {"lr": (1e-4, 1e-1)}}).lr == 2.0


@pytest.mark.parametrize(
    "lr",
    [
        np.float32(0.01),
        torch.tensor(0.01),
        (np.float32(1e-3), np.float64(0.1)),
        [np.float32(0.01), 0.1],
        np.geomspace(1e-3, 0.1, 3),
    ],
    ids=["number", "tensor", "range", "choices", "array"],
)
def test_numbers_of_other_libraries_are_numbers(lr: object) -> None:
    study = optuna.create_study(storage="sqlite://")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy = suggest_strategy(study.ask(), {"cosine": {"lr": lr}})
    assert type(strategy.lr) is float
    assert 1e-3 <= strategy.lr <= 0.1 + 1e-6


def test_options_that_are_pairs_of_numbers_are_not_ranges() -> None:
    strategy = suggest_strategy(optuna.create_study().ask(), {"cosine": {"lr": 0.01, "betas": (0.9, 0.99)}})
    assert strategy.betas == (0.9, 0.99)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ({}, ValueError, "space of strategies is empty"),
        ({"cosin": {"lr": 0.1}}, UnknownStrategy, "unknown strategy 'cosin'; available: .*cosine"),
        ({"cosine": {}}, ValueError, "strategy 'cosine' needs a learning rate: give it a range"),
        (
            {"cosine": {"lr": (0.1, 0.01)}},
            ValueError,
            "range of 'lr' of strategy 'cosine' must be finite with 0 < low < high",
        ),
        ({"cosine": {"lr": (0.0, 0.01)}}, ValueError, "0 < low < high"),
        (
            {"cosine": {"lr": 0.1, "warmup": []}},
            ValueError,
            "choices of 'warmup' of strategy 'cosine' are empty",
        ),
        ({"cosine": {"lr": 0.1, "speed": 3}}, ValueError, "strategy 'cosine' has no option 'speed'"),
        (
            {"metaoptimize": {}, "cosine": {"lr": 0.1, "warmup": (0.0, 2.0)}},
            ValueError,
            "warmup is a fraction",
        ),
        ({"cosine": 0.1}, ValueError, "options of strategy 'cosine' must be a mapping"),
        (["cosine"], ValueError, "space of strategies must map names to options"),
    ],
)
def test_a_bad_space_is_refused_before_any_trial_uses_it(
    space: dict[str, dict[str, object]], error: type[Exception], message: str
) -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(error, match=message):
        suggest_strategy(trial, space)
    assert trial.params == {}
