"""The engine protocol: what a search is, and who schedules its trials, stores and resumes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import plain

ENTRY_POINT_GROUP = "metaopt_hpo.engines"

Progress = Callable[[TrialRecord], None]
"""Called after each finished trial, those found in the store included."""


class EngineError(MetaOptError):
    """An engine is missing, or its store cannot be used."""


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """One search: a method's job at one size, under a budget of FLOPs.

    In a race the size of every run is the method's to choose, among `pilots` and the target, and batch is searched
    with lr; what counts is what has been spent when a good run of the target has been made.
    """

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
    pilots: tuple[tuple[float, float], ...] = ()
    """(size, tokens) of smaller runs that a method may make in a race."""
    batch_bounds: tuple[float, float] | None = None
    """Range of the batch in a race, searched in the logarithm; None where every run has `batch`."""
    base: Base | None = None
    """Runs of others that lend strength to a law, as in `fit`."""
    rungs: tuple[float, ...] = ()
    """Tokens at which a run of the target reports in a race, ascending, the end excluded."""

    @property
    def target(self) -> tuple[float, float]:
        """(size, tokens) whose best lr is wanted."""
        return self.size, self.tokens

    @property
    def box(self) -> dict[str, tuple[float, float]]:
        """What is searched, by name; a batch that is not has equal bounds."""
        return {"lr": self.lr_bounds, "batch": self.batch_bounds or (self.batch, self.batch)}

    def configuration(
        self,
        lr: float,
        *,
        strategy: str | None = None,
        seed: int | None = None,
        cell: tuple[float, float] | None = None,
        batch: float | None = None,
    ) -> Configuration:
        """The configuration of one trial of this search; `cell` is a pilot's (size, tokens)."""
        size, tokens = cell or self.target
        return Configuration(
            size=size,
            tokens=tokens,
            batch=self.batch if batch is None else batch,
            lr=lr,
            strategy=strategy or self.strategy,
            options={} if strategy and strategy != self.strategy else dict(self.options),
            seed=self.seed if seed is None else seed,
        )


def facts_of(method: Method, task: SearchTask) -> dict[str, Any]:
    """What a kept search must have been started with to be resumed, as plain JSON: what a proposal depends on."""
    evidence = [[r.study, r.trial, r.size, r.lr, r.loss] for r in task.evidence]
    return {
        "method": method.name,
        "objective": task.objective.name,
        "size": float(task.size),
        "tokens": float(task.tokens),
        "batch": float(task.batch),
        "lr_bounds": [float(b) for b in task.lr_bounds],
        "budget": float(task.budget),
        "seed": int(task.seed),
        "strategy": task.strategy,
        "options": plain(dict(task.options)),
        "evidence": json.dumps(plain(evidence)),
    }


def changed_facts(facts: Mapping[str, Any], kept: Any) -> list[str]:
    """Names of the facts of a search that differ from those kept with an earlier one, which may have kept fewer."""
    if not isinstance(kept, Mapping) or "method" not in kept:
        return sorted(facts)
    return sorted(k for k in facts if k in kept and kept[k] != facts[k])


def check_method(name: str, method: Method, methods: Iterable[str], verb: str = "has") -> None:
    """Raise EngineError unless an engine of this name has (or races) the method."""
    if method.name not in methods:
        raise EngineError(
            f"engine {name!r} {verb} no method {method.name!r}; it {verb} {', '.join(sorted(methods))}"
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


@runtime_checkable
class Racer(Protocol):
    """What an engine may offer beside `search`: its methods in a race, on a table and without a store."""

    @property
    def race_methods(self) -> Sequence[str]:
        """Names of the methods."""
        ...

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        """Records of the runs in the order they end; the reader stops reading when it has seen enough.

        An engine that cannot be stopped in between may run until `task.budget` is spent and return all records.

        Raises:
            EngineError: no such method.
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
