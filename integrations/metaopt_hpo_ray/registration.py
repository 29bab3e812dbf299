"""Makes the scheduler and the searcher known to Tune by name: "scaling_law"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ray.tune.schedulers import SCHEDULER_IMPORT
from ray.tune.search import SEARCH_ALG_IMPORT

NAME = "scaling_law"


class _AnyName(str):
    """A parameter name that equals every name."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = str.__hash__


class ByName:
    """What Tune finds under a name: it makes the object, and sees every option.

    `tune.create_scheduler` passes on only the options that the signature names and drops the others without a
    word. A signature whose one name equals all others lets a misspelt option reach the class, which refuses it.
    """

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self._load = load
        name = _AnyName("options")
        self.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)])

    def __call__(self, **options: Any) -> Any:
        return self._load()(**options)


def _scheduler() -> Callable[..., Any]:
    return import_module("metaopt_hpo_ray.scheduler").ScalingLawScheduler  # type: ignore[no-any-return]


def _searcher() -> Callable[..., Any]:
    return import_module("metaopt_hpo_ray.searcher").ScalingLawSearch  # type: ignore[no-any-return]


def register_by_name() -> None:
    """Make the scheduler and the searcher known to Tune as "scaling_law"."""
    SCHEDULER_IMPORT[NAME] = ByName(_scheduler)
    by_name = ByName(_searcher)
    SEARCH_ALG_IMPORT[NAME] = lambda: by_name
