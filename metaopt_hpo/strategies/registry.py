"""Strategies by name: ours, the user's own, and those other packages offer by entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from metaopt_hpo.strategies.base import LRStrategy, StrategyError
from metaopt_hpo.strategies.checks import close_to
from metaopt_hpo.trials.record import Tuning

ENTRY_POINT_GROUP = "metaopt_hpo.strategies"
BUILT_IN = {
    "constant": "metaopt_hpo.strategies.schedules",
    "cosine": "metaopt_hpo.strategies.schedules",
    "linear": "metaopt_hpo.strategies.schedules",
    "wsd": "metaopt_hpo.strategies.schedules",
    "metaoptimize": "metaopt_hpo.strategies.metaoptimize",
    "prodigy": "metaopt_hpo.strategies.rivals.distance",
    "d-adaptation": "metaopt_hpo.strategies.rivals.distance",
    "dog": "metaopt_hpo.strategies.rivals.distance",
    "ldog": "metaopt_hpo.strategies.rivals.distance",
    "schedule-free": "metaopt_hpo.strategies.rivals.schedule_free",
    "prodigy-schedule-free": "metaopt_hpo.strategies.rivals.schedule_free",
    "mechanic": "metaopt_hpo.strategies.rivals.tuners",
    "momo": "metaopt_hpo.strategies.rivals.tuners",
    "gdtuo": "metaopt_hpo.strategies.rivals.hypergradients",
    "hypergradient": "metaopt_hpo.strategies.rivals.hypergradients",
    "adalrs": "metaopt_hpo.strategies.rivals.adalrs",
    "adamg": "metaopt_hpo.strategies.rivals.adam_variants",
    "adopt": "metaopt_hpo.strategies.rivals.adam_variants",
}

_registered: dict[str, type[LRStrategy]] = {}
S = TypeVar("S", bound=type[LRStrategy])


class UnknownStrategy(StrategyError, ValueError):
    """No strategy of that name is built in, registered, or offered by an installed package.

    Examples:
        >>> from metaopt_hpo.strategies import UnknownStrategy, make
        >>> try:
        ...     make("cosin")
        ... except UnknownStrategy as error:
        ...     print("cosine" in str(error))
        ...
        True
    """


def register(name: str) -> Callable[[S], S]:
    """Class decorator: make a strategy available under `name`.

    Raises:
        ValueError: the name is taken by another class.

    Examples:
        >>> from dataclasses import dataclass
        >>> from metaopt_hpo.strategies import get, register
        >>> @register("my-cosine")
        ... @dataclass(frozen=True, kw_only=True)
        ... class MyCosine(get("cosine")):
        ...     pass
        ...
        >>> get("my-cosine") is MyCosine
        True
    """

    def add(cls: S) -> S:
        taken = _registered.get(name)
        if taken is not None and taken is not cls:
            raise ValueError(
                f"strategy name {name!r} is already taken by {taken.__module__}.{taken.__qualname__}"
            )
        cls.name = name
        _registered[name] = cls
        tuning_of.cache_clear()
        return cls

    return add


def get(name: str) -> type[LRStrategy]:
    """The strategy class of that name.

    Raises:
        UnknownStrategy: no such strategy; the message lists those there are.
        StrategyError: an entry point of that name does not lead to an `LRStrategy`.

    Examples:
        >>> from metaopt_hpo.strategies import get
        >>> get("cosine")(lr=1e-2).lr
        0.01
    """
    if name not in _registered:
        if name in BUILT_IN:
            import_module(BUILT_IN[name])
        else:
            _load_entry_point(name)
    return _registered[name]


def make(name: str, **options: Any) -> LRStrategy:
    """Build a strategy from its name and options: `make("cosine", lr=3e-3)`.

    Examples:
        >>> from metaopt_hpo.strategies import make
        >>> make("cosine", lr=1e-2, weight_decay=0.1).lr
        0.01
    """
    return get(name).from_options(**options)


def available() -> list[str]:
    """Names of all strategies that `get` can find, sorted.

    Examples:
        >>> from metaopt_hpo.strategies import available
        >>> "metaoptimize" in available()
        True
    """
    offered = {e.name for e in entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(set(BUILT_IN) | set(_registered) | offered)


@cache
def tuning_of(name: str) -> Tuning:
    """Who sets the learning rate under the strategy of that name: for a run that has not recorded it itself.

    Empty where no strategy of that name is to be had in this process, or an installed package's cannot be loaded.
    """
    try:
        return "self" if get(name).tunes_lr else "external"
    except Exception:
        return ""


def _load_entry_point(name: str) -> None:
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        known = available()
        raise UnknownStrategy(
            f"unknown strategy {name!r}; available: {', '.join(known)}{close_to(name, known)}"
        )
    cls = found[0].load()
    if not (isinstance(cls, type) and issubclass(cls, LRStrategy)):
        raise StrategyError(
            f"entry point {found[0].value!r} of strategy {name!r} is not a subclass of "
            "metaopt_hpo.strategies.LRStrategy"
        )
    register(name)(cls)
