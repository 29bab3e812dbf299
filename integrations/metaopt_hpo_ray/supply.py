"""Supply: Tune's own generators of trials, that draw no more than can be held back, and that survive a damaged file.

Tune draws trials while few are PENDING, and one that a scheduler holds back is not: without a bound an endless supply
is drawn for ever and nothing starts. And Tune restores no trial at all where one of the files beside the experiment's
is damaged: here such a file is moved aside, in the copy that Tune reads.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher, create_searcher
from ray.tune.search.search_algorithm import SearchAlgorithm
from ray.tune.search.search_generator import SearchGenerator

from metaopt_hpo.atomic import WriteError
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.restoring import copy_state

logger = logging.getLogger(__name__)

ENDLESS = 256
"""Trials of an endless random search that may wait at once: enough to choose from."""

SUGGESTED = 8
"""Trials suggested by a searcher that may wait at once: it has seen no result of those."""


COPYING = 200.0
"""The copy of Tune's snapshot takes no more than this part of the loop's time, one in so many."""


class _Bounded:
    """What the two generators share."""

    room: float
    """Trials that may wait."""
    _waiting: list[Trial]
    _copy_again = 0.0
    """Time of the monotonic clock before which no copy is made."""

    def _full(self) -> bool:
        if len(self._waiting) >= self.room:
            self._waiting = [t for t in self._waiting if _waits(t)]
        return len(self._waiting) >= self.room

    def has_checkpoint(self, dirpath: str) -> bool:
        """Whether there is something to go on from; what is damaged is moved aside before anybody reads it."""
        for name in _compat.set_aside_damaged(dirpath):
            logger.warning("%s is damaged and was moved aside; the trials come from the journal", name)
        return bool(super().has_checkpoint(dirpath))  # type: ignore[misc]

    def save_to_dir(self, dirpath: str, session_str: str, **kwargs: Any) -> None:
        """Save; Tune has just written its snapshot of the trials, of which a copy is kept."""
        super().save_to_dir(dirpath, session_str, **kwargs)  # type: ignore[misc]
        begin = time.monotonic()
        if begin < self._copy_again:
            return
        try:
            copy_state(dirpath)
        except (OSError, WriteError) as error:
            logger.warning("no copy of Tune's snapshot could be kept: %s", error)
        now = time.monotonic()
        self._copy_again = now + COPYING * (now - begin)

    def restore_from_dir(self, dirpath: str) -> None:
        """Go on from the newest saved state; a searcher whose own state is damaged begins anew."""
        try:
            super().restore_from_dir(dirpath)  # type: ignore[misc]
        except Exception as error:
            logger.warning("the searcher's saved state is of no use (%s); it goes on without", error)
            _compat.restore_generator(self, dirpath)


class Variants(_Bounded, BasicVariantGenerator):  # type: ignore[misc]
    """Random and grid search."""

    room = float("inf")

    def add_configurations(self, experiments: Any) -> None:
        """Begin; where the supply is endless, only so many trials may wait."""
        super().add_configurations(experiments)
        self._bound()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on."""
        super().set_state(state)  # type: ignore[no-untyped-call]
        self._bound()

    def _bound(self) -> None:
        self._waiting = []
        # Tune's own numbers: num_samples=-1 becomes sys.maxsize, and a grid multiplies it
        self.room = ENDLESS if self.total_samples >= sys.maxsize // 2 else float("inf")

    def next_trial(self) -> Trial | None:
        """The next trial; None while enough of them wait, and at the end."""
        if self._full():
            return None
        trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
        if trial is not None and self.room < float("inf"):
            self._waiting.append(trial)
        return trial

    def get_state(self) -> Any:
        """For Tune's snapshot."""
        state = super().get_state()  # type: ignore[no-untyped-call]
        return {**state, "_waiting": [], "_copy_again": 0.0} if isinstance(state, dict) else state


class Suggestions(_Bounded, SearchGenerator):  # type: ignore[misc]
    """Trials that a searcher suggests."""

    room = SUGGESTED

    def __init__(self, searcher: Searcher) -> None:
        super().__init__(searcher)
        self._waiting = []

    def next_trial(self) -> Trial | None:
        """The next suggestion; None while enough of them wait, while the searcher waits, and at the end."""
        if self._full():
            return None
        trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
        if trial is not None:
            self._waiting.append(trial)
        return trial

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_waiting": [], "_copy_again": 0.0}


def _waits(trial: Trial) -> bool:
    return trial.status in (Trial.PENDING, Trial.PAUSED) and "training_iteration" not in (
        trial.last_result or {}
    )


def make_supply(
    search_alg: Any, max_concurrent: int | None, *, metric: str, mode: str, space: Mapping[str, Any]
) -> tuple[Any, int | None]:
    """(generator of trials, what is left to say to Tune of `max_concurrent_trials`) for a search algorithm.

    Raises:
        ValueError: two limits that differ, or a searcher that could not suggest anything.
    """
    if isinstance(search_alg, str):
        search_alg = create_searcher(search_alg)
    if search_alg is None:
        search_alg = BasicVariantGenerator()
    if type(search_alg) is BasicVariantGenerator:
        bounded = Variants.__new__(Variants)
        bounded.__dict__.update(search_alg.__dict__)
        bounded._waiting = []
        bounded.max_concurrent = max_concurrent or search_alg.max_concurrent
        return bounded, None
    if not isinstance(search_alg, Searcher):
        return search_alg, max_concurrent  # a generator of somebody else's
    searcher = innermost(search_alg)
    if not space and searcher.metric is None:  # Tune names the metric only where it has a space to tell of
        search_alg.set_search_properties(metric, mode, {})
        if searcher.metric is None and type(searcher).__module__.startswith("ray.tune.search."):
            raise ValueError(
                f"{type(searcher).__name__} has a space of its own and knows no metric, and Tune would not tell it; "
                f"give it metric={metric!r} and mode={mode!r} too"
            )
    if max_concurrent:
        if not isinstance(search_alg, ConcurrencyLimiter):
            search_alg = ConcurrencyLimiter(search_alg, max_concurrent=max_concurrent)
        elif search_alg.max_concurrent != max_concurrent:
            raise ValueError(
                f"max_concurrent_trials={max_concurrent} and the searcher's ConcurrencyLimiter has "
                f"max_concurrent={search_alg.max_concurrent}; give one of the two"
            )
    return Suggestions(search_alg), None


def innermost(search_alg: Any) -> Any:
    """The searcher itself, without limiters and repeaters around it."""
    while isinstance(search_alg, Searcher | SearchAlgorithm) and hasattr(search_alg, "searcher"):
        search_alg = search_alg.searcher
    return search_alg
