"""strategy_space: the way lr is set during a run as a conditional part of a Tune space; resources by model size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

from metaopt_hpo.strategies import LRStrategy
from metaopt_hpo.strategies.space import (
    Choice,
    Range,
    check_space,
    entry_name,
    from_entries,
    read_option,
    scalar,
)
from metaopt_hpo.training.size import size_of as size_of
from metaopt_hpo.trials.quantities import at, positive

GPU_SHARES = 8
"""A GPU is shared in eighths: finer shares leave less memory than a CUDA context needs to be worth it."""


def strategy_space(space: Mapping[str, Mapping[str, Any]], *, name: str = "strategy") -> dict[str, Any]:
    """Entries of a `param_space` that choose how lr is set, and the options of that choice.

        param_space = {"size": ..., **strategy_space({
            "metaoptimize": {},                      # finds lr during the run: nothing to search
            "cosine": {"lr": (1e-4, 1e-1), "warmup": [0.0, 0.05]},
        })}

    The choice is the entry `name`. The learning rate is the entry `lr`, whichever strategy it belongs to; any
    other option is `<strategy>.<option>`. An option of a strategy that was not chosen is None, so that a
    trial's config shows only what it used. `build_strategy(config)` makes the strategy in the trainable.

    With one strategy the space has plain ranges, which every searcher understands. Several make it
    conditional, which Tune resolves for its own random search and for `ScalingLawSearch`; other searchers take
    one strategy at a time.

    Args:
        space: strategy name → option → a fixed value; `(low, high)`, whole numbers for an integer range, `lr`
            and `meta_lr` in the logarithm; `[a, b, …]`, a choice; or a domain of Tune's.
        name: of the entry that holds the choice.

    Raises:
        UnknownStrategy: a name that is not registered.
        ValueError: an empty space, an unknown option, an empty range, or a strategy that needs an lr and has none.

    Examples:
        >>> from ray import tune
        >>> from metaopt_hpo_ray import strategy_space
        >>> list(strategy_space({"cosine": {"lr": tune.loguniform(1e-4, 1e-1)}, "metaoptimize": {}}))
        ['strategy', 'lr']
    """
    check_space(space, _example, call="strategy_space(")
    if len(space) == 1:
        ((choice, options),) = space.items()
        return {
            name: choice,
            **{entry_name(choice, o): _domain(o, spec, choice) for o, spec in options.items()},
        }
    out: dict[str, Any] = {name: tune.choice(list(space))}
    lrs = {c: _domain("lr", o["lr"], c) for c, o in space.items() if "lr" in o}
    if lrs:
        out["lr"] = tune.sample_from(Conditional(name, lrs))
    for choice, options in space.items():
        for option, spec in options.items():
            if option != "lr":
                only = {choice: _domain(option, spec, choice)}
                out[entry_name(choice, option)] = tune.sample_from(Conditional(name, only))
    return out


def build_strategy(config: Mapping[str, Any], *, name: str = "strategy") -> LRStrategy:
    """The strategy that a trial's config chose from `strategy_space`.

    Raises:
        ValueError: the config has no entry `name`, or an option the strategy does not know.

    Examples:
        >>> from metaopt_hpo_ray import build_strategy
        >>> build_strategy({"strategy": "cosine", "lr": 1e-2}).lr
        0.01
    """
    return from_entries(config, name, "add strategy_space(…) to param_space")


class Conditional:
    """Samples an option where its strategy was chosen, and gives None where it was not."""

    def __init__(self, name: str, choices: Mapping[str, Any]) -> None:
        self.name = name
        self.choices = dict(choices)

    def __call__(self, spec: Any) -> Any:
        """The value for Tune's `spec`, whose `config` holds what is resolved already."""
        chosen = self.choices.get(spec.config[self.name])
        return chosen.sample() if isinstance(chosen, Domain) else chosen


def _example(choice: str, option: str, spec: Any) -> Any:
    domain = _domain(option, spec, choice)
    return scalar(domain.sample()) if isinstance(domain, Domain) else domain


def _domain(option: str, spec: Any, choice: str) -> Any:
    if isinstance(spec, Mapping):
        raise ValueError(
            f"{option!r} of strategy {choice!r} must be a value, a range (low, high), a list of choices or a "
            f"domain such as tune.loguniform, got {spec!r}"
        )
    read = read_option(choice, option, spec)
    if isinstance(read, Choice):
        return tune.choice(list(read.values))
    if isinstance(read, Range):
        if read.whole:
            return tune.randint(int(read.low), int(read.high) + 1)
        return tune.loguniform(read.low, read.high) if read.log else tune.uniform(read.low, read.high)
    return spec


def resources_by_size(
    *, size: str = "size", cpus: float = 1.0, gpu_size: float | None = None
) -> Callable[[Mapping[str, Any]], tune.PlacementGroupFactory]:
    """Resources of a trial as a function of its config, for `tune.with_resources`.

    Args:
        size: entry of the config that holds the model's size.
        cpus: CPUs of every trial (default 1).
        gpu_size: parameters of the model that fills one GPU. A smaller model gets its share, in eighths; a
            larger one whole GPUs. None for a cluster of CPUs, the default. Shares are Ray's bookkeeping:
            they do not keep one trial from another's memory.

    Raises:
        ValueError: a number out of range; from the function, a config without a size.

    Examples:
        >>> from metaopt_hpo_ray import resources_by_size
        >>> resources_by_size(cpus=2)({"size": 1e6}).required_resources["CPU"]
        2.0
    """
    if not positive(cpus):
        raise ValueError(f"cpus must be a finite number > 0, got {cpus!r}")
    if gpu_size is not None and not positive(gpu_size):
        raise ValueError(f"gpu_size must be a finite number > 0 or None, got {gpu_size!r}")

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        if gpu_size is None:
            return tune.PlacementGroupFactory([{"CPU": cpus}])
        value = at(config, size)
        if not positive(value):
            raise ValueError(f"the config's {size!r} must be a finite number > 0, got {value!r}")
        share = float(value) / gpu_size
        gpus = math.ceil(share) if share > 1 else max(1, math.ceil(share * GPU_SHARES)) / GPU_SHARES
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": float(gpus)}])

    return resources


def with_resources(
    trainable: Any, *, size: str = "size", cpus: float = 1.0, gpu_size: float | None = None
) -> Any:
    """`trainable` with resources by model size; see `resources_by_size`.

    Examples:
        >>> from metaopt_hpo_ray import with_resources
        >>> def train(config):
        ...     pass
        ...
        >>> callable(with_resources(train, cpus=1))
        True
    """
    return tune.with_resources(trainable, resources_by_size(size=size, cpus=cpus, gpu_size=gpu_size))
