"""A race: one search of lr and batch at a target, in which smaller models may be trained too.

`SearchTask` is a search of lr at one size under equal budgets; here the size of every run is the method's to choose,
and what counts is what it has spent when it arrives. Engines that race implement `Racer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.scaling.policy.design import Cell
from metaopt_hpo.scaling.policy.points import Bounds
from metaopt_hpo.trials.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Race:
    """What a method is given.

    Attributes:
        objective: runs a configuration, reports its curve, and says what it cost.
        target: (size, tokens) whose best lr and batch are wanted.
        pilots: smaller cells that may be run.
        lr, batch: the box that every method searches.
        rungs: tokens at which a run of the target reports, ascending, the end excluded.
        budget: FLOPs after which nothing more is asked.
        seed: of the method.
    """

    objective: Objective
    target: Cell
    pilots: tuple[Cell, ...]
    lr: Bounds
    batch: Bounds
    rungs: tuple[float, ...]
    budget: float
    seed: int

    def configuration(self, cell: Cell, lr: float, batch: float) -> Configuration:
        """A run of one cell."""
        return Configuration(size=cell[0], tokens=cell[1], batch=batch, lr=lr, seed=self.seed)


@runtime_checkable
class Racer(Protocol):
    """What an engine offers beside `search`: its methods in a race."""

    @property
    def race_methods(self) -> Sequence[str]:
        """Names of the methods; those that start with "law" are ours."""
        ...

    def race(self, method: str, race: Race) -> Iterator[TrialRecord]:
        """Records of the runs in the order they end; the reader stops reading when it has seen enough.

        An engine that cannot be stopped in between may run until `race.budget` is spent and return all records.
        """
        ...
