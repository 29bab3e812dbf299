"""suggest_strategy: the way lr is set during a run as a conditional part of an Optuna search space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from metaopt_hpo.strategies import LRStrategy, get

LOG_OPTIONS = ("lr", "meta_lr")
"""Options whose ranges are searched in the logarithm."""


def suggest_strategy(
    trial: BaseTrial, space: Mapping[str, Mapping[str, Any]], *, name: str = "strategy"
) -> LRStrategy:
    """Let a trial choose how its learning rate is set, and the options of that choice.

        strategy = suggest_strategy(trial, {
            "metaoptimize": {},                    # finds lr during the run: nothing to search
            "cosine": {"lr": (1e-4, 1e-1), "warmup": [0.0, 0.05]},
        })

    The choice is the categorical parameter `name`. Ranges of the strategy that was chosen are suggested, those
    of the others are not. The learning rate is the parameter `lr`, whichever strategy it belongs to, so that a
    sampler learns it once; any other option is `<strategy>.<option>`.

    Args:
        trial: a `Trial` of define-by-run or ask-and-tell, or a `FixedTrial`. Enqueued values apply.
        space: strategy name → option → a fixed value; `(low, high)`, whole numbers for an integer range, `lr`
            and `meta_lr` in the logarithm; `[a, b, …]`, a choice; or an Optuna distribution.
        name: of the categorical parameter.

    Returns:
        The configured strategy, for `TrialRun`.

    Raises:
        UnknownStrategy: a name that is not registered.
        ValueError: an empty space, an unknown option, an empty range, or a strategy that needs an lr and has none.
    """
    if not space:
        raise ValueError(
            'the space of strategies is empty; name at least one: suggest_strategy(trial, {"metaoptimize": {}})'
        )
    for choice, options in space.items():
        _check(choice, options)
    choice = str(trial.suggest_categorical(name, list(space)))
    options = space[choice]
    values = {
        option: _suggest(trial, option if option == "lr" else f"{choice}.{option}", option, spec)
        for option, spec in options.items()
    }
    return get(choice).from_options(**values)


def _check(choice: str, options: Mapping[str, Any]) -> None:
    """Say what is wrong with a strategy before any trial runs it, not when a sampler happens to choose it."""
    strategy = get(choice)
    if not isinstance(options, Mapping):
        raise ValueError(f"options of strategy {choice!r} must be a mapping, got {options!r}")
    if not strategy.tunes_lr and "lr" not in options:
        raise ValueError(
            f"strategy {choice!r} needs a learning rate: give it a range, "
            f'{{"{choice}": {{"lr": (1e-4, 1e-1)}}}}, or a number'
        )
    strategy.from_options(**{o: _example(choice, o, spec) for o, spec in options.items()})


def _example(choice: str, option: str, spec: Any) -> Any:
    """A value of the range, with which the strategy checks the option's name and type."""
    distribution = _distribution(option, spec, choice)
    if distribution is None:
        return spec
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.high


def _distribution(option: str, spec: Any, choice: str) -> BaseDistribution | None:
    if isinstance(spec, BaseDistribution):
        return spec
    if isinstance(spec, list):
        if not spec:
            raise ValueError(f"the choices of {option!r} of strategy {choice!r} are empty; give at least one")
        return CategoricalDistribution(spec)
    if not _is_range(option, spec):
        return None
    low, high = spec
    log = option in LOG_OPTIONS
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        bound = "0 < low < high" if log else "low < high"
        raise ValueError(
            f"the range of {option!r} of strategy {choice!r} must be finite with {bound}, got {spec!r}"
        )
    if isinstance(low, int) and isinstance(high, int) and not log:
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=log)


def _is_range(option: str, spec: Any) -> bool:
    # betas is itself a pair of numbers
    return (
        option != "betas"
        and isinstance(spec, tuple)
        and len(spec) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in spec)
    )


def _suggest(trial: BaseTrial, parameter: str, option: str, spec: Any) -> Any:
    d = _distribution(option, spec, parameter)
    if d is None:
        return spec
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(parameter, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(parameter, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(parameter, d.low, d.high, step=d.step, log=d.log)
