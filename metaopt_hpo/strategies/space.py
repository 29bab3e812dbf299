"""A space of strategies as users write it, read once for every framework that samples from it.

A space maps a strategy's name to its options, and an option to a fixed value, a range `(low, high)`, a list of
choices, or a distribution of the framework's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.strategies.registry import get
from metaopt_hpo.trials.quantities import at

LOG_OPTIONS = ("lr", "meta_lr")
"""Options whose ranges are searched in the logarithm."""

Space = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Range:
    """All values between two, ends included."""

    low: float
    high: float
    log: bool
    """Searched in the logarithm."""
    whole: bool
    """Whole numbers only."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]


def plain_space(space: Space) -> dict[str, dict[str, Any]]:
    """The space with plain numbers for NumPy's and torch's, and lists of choices for arrays.

    Raises:
        ValueError: it is no mapping of names to mappings.
    """
    if not isinstance(space, Mapping):
        raise ValueError(
            f'the space of strategies must map names to options, {{"metaoptimize": {{}}}}; got {space!r}'
        )
    for name, options in space.items():
        if not isinstance(options, Mapping):
            raise ValueError(f"options of strategy {name!r} must be a mapping, got {options!r}")
    return {name: {o: _plain(spec) for o, spec in options.items()} for name, options in space.items()}


def _plain(spec: Any) -> Any:
    if isinstance(spec, list | tuple):
        return type(spec)(map(_plain, spec))
    tolist = getattr(spec, "tolist", None)
    return tolist() if callable(tolist) else spec


def read_option(strategy: str, option: str, spec: Any) -> Range | Choice | None:
    """What an option may be; None where `spec` is a fixed value or a distribution of a framework's own.

    Raises:
        ValueError: an empty list, or a range that is empty, infinite, or not positive where it is logarithmic.
    """
    if isinstance(spec, list):
        if not spec:
            raise ValueError(
                f"the choices of {option!r} of strategy {strategy!r} are empty; give at least one"
            )
        return Choice(tuple(spec))
    # betas is itself a pair of numbers
    if option == "betas" or not (isinstance(spec, tuple) and len(spec) == 2 and all(map(_is_number, spec))):
        return None
    low, high = spec
    log = option in LOG_OPTIONS
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        bound = "0 < low < high" if log else "low < high"
        raise ValueError(
            f"the range of {option!r} of strategy {strategy!r} must be finite with {bound}, got {spec!r}"
        )
    return Range(low, high, log, whole=isinstance(low, int) and isinstance(high, int) and not log)


def entry_name(strategy: str, option: str) -> str:
    """The parameter an option is searched under: `lr` for every strategy, so that it is learned once, else
    `<strategy>.<option>`."""
    return option if option == "lr" else f"{strategy}.{option}"


def from_entries(entries: Mapping[str, Any], name: str, remedy: str) -> LRStrategy:
    """The strategy that a trial chose, from its parameters: the inverse of `entry_name`.

    Args:
        entries: `name` → the strategy's, `lr`, and `<strategy>.<option>` of its other options; None where not chosen.
        name: of the entry that holds the choice, parts of a nested one separated by "/" or ".".
        remedy: what to do where there is none, for the message.

    Raises:
        ValueError: there is no entry `name`, or an option the strategy does not know.
    """
    choice = at(entries, name)
    if not isinstance(choice, str):
        raise ValueError(f"the config has no entry {name!r} that names a strategy; {remedy}")
    prefix = f"{choice}."
    options = {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}
    options["lr"] = entries.get("lr")
    return get(choice).from_options(**{k: scalar(v) for k, v in options.items() if v is not None})


def scalar(value: Any) -> Any:
    """A value with a plain number for a scalar of NumPy's or torch's."""
    item = getattr(value, "item", None)
    return item() if callable(item) and not isinstance(value, str | int | float | bool) else value


def check_space(space: Space, example: Callable[[str, str, Any], Any], *, call: str) -> None:
    """Say what is wrong with a space before any trial runs, not when a sampler happens to choose it.

    Args:
        space: what the user wrote.
        example: (strategy, option, spec) → one value of it, with which the strategy checks name and type.
        call: the name of the function that takes the space, for the message.

    Raises:
        UnknownStrategy: a name that is not registered.
        ValueError: an empty space, an unknown option, a bad value, or a strategy that needs an lr and has none.
    """
    if not space:
        raise ValueError(
            f'the space of strategies is empty; name at least one: {call}{{"metaoptimize": {{}}}})'
        )
    for name, options in space.items():
        strategy = get(name)
        if not isinstance(options, Mapping):
            raise ValueError(f"options of strategy {name!r} must be a mapping, got {options!r}")
        if not strategy.tunes_lr and "lr" not in options:
            raise ValueError(
                f"strategy {name!r} needs a learning rate: give it a range, "
                f'{{"{name}": {{"lr": (1e-4, 1e-1)}}}}, or a number'
            )
        strategy.from_options(**{o: example(name, o, spec) for o, spec in options.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
