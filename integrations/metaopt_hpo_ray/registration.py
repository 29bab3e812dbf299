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

    `tune.create_scheduler` passes on only options that are `in` the list of the signature's names
    (`ray._common.utils.get_function_args`) and drops the others without a word, so that a misspelt option would be
    ignored. A signature whose one name equals all others is the one thing that lets it reach the class, which refuses
    it: a list compares by equality alone, and Tune calls nothing of ours before it has dropped them.
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
