"""The engine protocol: who schedules trials, stores them and resumes. Integrations implement it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import TrialRecord

ENTRY_POINT_GROUP = "metaopt_hpo.engines"

Progress = Callable[[TrialRecord], None]
"""Called after each finished trial, those found in the store included."""


class EngineError(MetaOptError):
    """An engine is missing, or its store cannot be used."""


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """One search: a method's job at one size, under a budget of FLOPs."""

    objective: Objective
    size: float
    tokens: float
    batch: float
    lr_bounds: tuple[float, float]
    """Range of the learning rate, searched in the logarithm."""
    budget: float
    """FLOPs this search may spend; a trial is started only if it fits, and failed, pruned and diverged
    trials count for what they used."""
    seed: int = 0
    """Of the search method and of the training runs, so that methods meet on common random numbers."""
    strategy: str = "wsd"
    """Schedule whose lr external methods search."""
    options: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    """Options of that strategy."""
    evidence: Sequence[TrialRecord] = ()
    """Trials of other sizes a law may learn from; their cost counts against the budget."""

    def configuration(
        self, lr: float, *, strategy: str | None = None, seed: int | None = None
    ) -> Configuration:
        """The configuration of one trial of this search."""
        return Configuration(
            size=self.size,
            tokens=self.tokens,
            batch=self.batch,
            lr=lr,
            strategy=strategy or self.strategy,
            options={} if strategy and strategy != self.strategy else dict(self.options),
            seed=self.seed if seed is None else seed,
        )


class SearchEngine(Protocol):
    """Runs methods on objectives and keeps what they did in a store."""

    name: str

    @property
    def methods(self) -> frozenset[str]:
        """Names of the methods this engine implements."""
        ...

    def search(
        self,
        method: Method,
        task: SearchTask,
        *,
        store: str | None = None,
        study: str,
        progress: Progress | None = None,
    ) -> list[TrialRecord]:
        """Spend the task's budget with the method and return its trials in the order they were run.

        Args:
            store: where trials live (for Optuna a storage URL or a file path); None keeps them in memory.
                A study of the same name is resumed: nothing finished is run again, and the trial that an
                interrupted process left under way goes on; what that process had spent on it is not counted.
            study: unique name of this search within the store.

        Raises:
            EngineError: the store is corrupt, foreign, or belongs to a different task.
        """
        ...


def get_engine(name: str, **options: Any) -> SearchEngine:
    """The engine an installed package offers under that name.

    Raises:
        EngineError: none does, or its framework is not installed; the message says what to install.
    """
    found = {e.name: e for e in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        raise EngineError(f"no engine {name!r}; installed engines: {', '.join(sorted(found)) or 'none'}")
    try:
        factory = found[name].load()
    except ImportError as error:
        raise EngineError(f"engine {name!r} cannot be loaded: {error}") from error
    engine: SearchEngine = factory(**options)
    return engine
