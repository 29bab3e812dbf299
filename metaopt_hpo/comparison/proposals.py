"""Learning rates of the methods that need no framework's sampler, and what a search has left to spend on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from metaopt_hpo.comparison.budget import grid_in_budget, limit_of, random_lr, starts_of
from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record import TrialRecord


@dataclass(frozen=True)
class Points:
    """Learning rates one after another.

    Attributes:
        at: (how many trials used up a proposal, records of those of them that have ended) → the next lr, or None when
            there is none left. A trial that failed and is made again used up none.
        strategy: what sets lr during the run, where it is another than the task's.
    """

    at: Callable[[int, Sequence[TrialRecord]], float | None]
    strategy: str | None = None


def points_of(method: Method, task: SearchTask) -> Points | None:
    """The method's points: a grid, random ones, starts of a self-tuning strategy, or a law's; None for any other.

    Raises:
        EngineError: a law is to be asked, and the task's evidence bears none.
    """
    if method.name == "grid":
        grid = grid_in_budget(task)
        return Points(lambda made, _: grid(made))
    if method.name in ("random", "asha"):
        return Points(lambda made, _: random_lr(task, made))
    if method.strategy is not None:
        start = starts_of(method)
        return Points(lambda made, _: start(made), method.strategy)
    if method.name == "law":
        from metaopt_hpo.comparison.law_search import TargetSearch

        search = TargetSearch(task)
        return Points(lambda made, own: search.propose(own, running=made - len(own)))
    return None


class Spending:
    """What a search may still spend: a trial under way counts at its full cost until it has ended.

    Args:
        task: whose budget it is; the evidence has been paid from it.
        done: trials of the search that have ended.
    """

    def __init__(self, task: SearchTask, done: Sequence[TrialRecord] = ()) -> None:
        self._task = task
        self._limit = limit_of(task)
        self._spent = math.fsum(r.cost for r in [*task.evidence, *done])
        self._running: dict[Hashable, float] = {}

    @property
    def running(self) -> int:
        """How many trials are under way."""
        return len(self._running)

    def bears(self, lr: float | None, strategy: str | None = None) -> bool:
        """Whether another trial fits; without an lr, one in the middle of the range tells what it costs."""
        committed = self._spent + math.fsum(self._running.values())
        return committed + self._cost(lr, strategy) <= self._limit

    def begin(self, key: Hashable, lr: float, strategy: str | None = None) -> None:
        """A trial is under way."""
        self._running[key] = self._cost(lr, strategy)

    def end(self, key: Hashable, cost: float) -> None:
        """It has ended, and has cost so many FLOPs."""
        self._running.pop(key, None)
        self._spent += cost

    def _cost(self, lr: float | None, strategy: str | None) -> float:
        lr = math.sqrt(math.prod(self._task.lr_bounds)) if lr is None else lr
        return self._task.objective.cost(self._task.configuration(lr, strategy=strategy))
