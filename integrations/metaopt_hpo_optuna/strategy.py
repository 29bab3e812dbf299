"""suggest_strategy: the way lr is set during a run as a conditional part of an Optuna search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial, Trial, TrialState

from metaopt_hpo.strategies import LRStrategy, get
from metaopt_hpo.strategies.space import Choice, Range, check_space, entry_name, plain_space, read_option


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

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo_optuna import suggest_strategy
        >>> strategy = suggest_strategy(study.ask(), {"cosine": {"lr": (1e-4, 1e-1)}})
        >>> strategy.name
        'cosine'
    """
    space = plain_space(space)
    check_space(space, _example, call="suggest_strategy(trial, ")
    choice = str(trial.suggest_categorical(name, list(space)))
    values = {
        option: _suggest(trial, entry_name(choice, option), _distribution(choice, option, spec), spec)
        for option, spec in space[choice].items()
    }
    strategy = get(choice).from_options(**values)
    if "tuning" not in trial.user_attrs:  # before the run, so that whoever judges it knows
        trial.set_user_attr("tuning", "self" if strategy.tunes_lr else "external")
    return strategy


def repeat_seed(trial: Trial, seed: int = 0) -> int:
    """A seed that differs between repeats of one configuration: `seed` plus the finished trials with equal parameters.

    Call it once all parameters are suggested, before the model is built; then a sampler that chooses a configuration
    again learns of its noise instead of the same value:

        torch.manual_seed(seed := repeat_seed(trial))
        with TrialRun(trial, model, strategy, …, seed=seed) as run: …

    Examples:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> from metaopt_hpo_optuna import repeat_seed
        >>> repeat_seed(study.ask(), seed=7)
        7
    """
    finished = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return seed + sum(t.params == trial.params for t in finished)


def _example(choice: str, option: str, spec: Any) -> Any:
    distribution = _distribution(choice, option, spec)
    if distribution is None:
        return spec
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.high


def _distribution(choice: str, option: str, spec: Any) -> BaseDistribution | None:
    if isinstance(spec, BaseDistribution):
        return spec
    read = read_option(choice, option, spec)
    if isinstance(read, Choice):
        return CategoricalDistribution(read.values)
    if isinstance(read, Range):
        if read.whole:
            return IntDistribution(int(read.low), int(read.high))
        return FloatDistribution(float(read.low), float(read.high), log=read.log)
    return None


def _suggest(trial: BaseTrial, parameter: str, d: BaseDistribution | None, spec: Any) -> Any:
    if d is None:
        return spec
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(parameter, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(parameter, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(parameter, d.low, d.high, step=d.step, log=d.log)
