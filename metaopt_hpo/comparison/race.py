"""A race: what a method spends, pilots included, until it has run a target that is near the best of a table.

Cost is counted in target runs: FLOPs of a run over those of a full run of the target. A method has arrived when it has
*run* a target configuration within a tolerance of the best; it does not know that it has. What was stopped pays for the
tokens it saw. Methods are those of the installed engines, and three that need none (`PlainRacer`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

import numpy as np

from metaopt_hpo.comparison.engine import ENTRY_POINT_GROUP, EngineError, Racer, SearchTask, get_engine
from metaopt_hpo.comparison.law_search import law_search
from metaopt_hpo.comparison.methods import Method, available_methods
from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.sameness import at_least
from metaopt_hpo.trials.record import TrialRecord

Cell = tuple[float, float]
"""(size, tokens)."""


@dataclass(frozen=True)
class Problem:
    """A target in a table.

    Attributes:
        name: what it is called in results.
        objectives: one for each training seed; a method's n-th repetition meets the n-th, cyclically.
        target: (size, tokens).
        pilots: smaller cells.
        truth: loss over (lr, batch) at the target that counts, free of one seed's noise where there are several.
        unit: FLOPs of one run of the target.
    """

    name: str
    objectives: tuple[ReplayedObjective, ...]
    target: Cell
    pilots: tuple[Cell, ...]
    truth: CellGrid
    unit: float

    def race(self, seed: int, limit: float, *, pilots: bool = True, base: Base | None = None) -> SearchTask:
        """The search of one repetition, to be ended after `limit` target runs.

        Args:
            pilots: the box is what pilots and target cover, the same for every method; False offers no pilots and
                the target's own box.
            base: runs of others that lend strength to a law.
        """
        objective = self.objectives[seed % len(self.objectives)]
        cells = (*self.pilots, self.target) if pilots else (self.target,)
        points = [objective.grid(*c).points for c in cells]
        low = np.exp(np.min([p.min(axis=0) for p in points], axis=0))
        high = np.exp(np.max([p.max(axis=0) for p in points], axis=0))
        return SearchTask(
            objective=objective,
            size=self.target[0],
            tokens=self.target[1],
            batch=math.sqrt(float(low[1]) * float(high[1])),
            lr_bounds=(float(low[0]), float(high[0])),
            batch_bounds=(float(low[1]), float(high[1])),
            pilots=self.pilots if pilots else (),
            rungs=objective.rungs(*self.target),
            budget=limit * self.unit,
            base=base,
            seed=seed,
        )

    def excess(self, record: TrialRecord) -> float:
        """Relative loss above the best of a finished run of the target; NaN of any other run."""
        done = record.state == "complete" and (record.size, record.target_tokens) == self.target
        return self.truth.excess(record.lr, record.batch) if done else math.nan


def problem_of(name: str, objective: ReplayedObjective, target: Cell) -> Problem:
    """The nearest cell as target; pilots are all cells of smaller size and no more tokens."""
    found = min(objective.cells, key=lambda c: abs(c[0] / target[0] - 1) + abs(c[1] / target[1] - 1))
    pilots = tuple(c for c in objective.cells if not at_least(c[0], found[0]) and at_least(found[1], c[1]))
    unit = objective.cost(Configuration(size=found[0], tokens=found[1], batch=1.0, lr=1.0))
    return Problem(name, (objective,), found, pilots, objective.grid(*found), unit)


@dataclass(frozen=True)
class Improvement:
    """Where a race stood when a run of the target was better than all before."""

    cost: float
    """Target runs spent so far."""
    excess: float
    """Relative loss above the best."""
    runs: int
    """Runs made so far."""
    pilots: float
    """Of `cost`, what went into runs that were no finished run of the target."""


def improvements(
    records: Iterable[TrialRecord],
    problem: Problem,
    *,
    limit: float,
    enough: float,
) -> list[Improvement]:
    """Read a race until it has come within `enough` of the best or has spent `limit` target runs.

    Returns:
        Every improvement; where there was none, what was spent, with an infinite excess.
    """
    spent, best, pilots, runs = 0.0, math.inf, 0.0, 0
    found: list[Improvement] = []
    for runs, record in enumerate(records, start=1):
        spent += record.cost / problem.unit
        excess = problem.excess(record)
        if math.isnan(excess) and record.size != problem.target[0]:
            pilots += record.cost / problem.unit
        if excess < best:
            best = excess
            found.append(Improvement(spent, best, runs, pilots))
        if best <= enough or spent >= limit:
            break
    return found or [Improvement(spent, math.inf, runs, pilots)]


class PlainRacer:
    """Methods that need no framework: the table's configurations in random order, log-uniform draws, and the law."""

    race_methods = ("grid", "random", "law")

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        """See `Racer.race`; none but the grid ends on its own."""
        if method.name == "law":
            return law_search(task)
        return self._runs(task, self._grid(task) if method.name == "grid" else self._random(task))

    @staticmethod
    def _runs(task: SearchTask, points: Iterable[tuple[float, float]]) -> Iterator[TrialRecord]:
        for lr, batch in points:
            yield task.objective.run(task.configuration(lr, batch=batch))

    @staticmethod
    def _grid(task: SearchTask) -> Iterator[tuple[float, float]]:
        """A grid is done when its last point is."""
        objective = task.objective
        if not isinstance(objective, ReplayedObjective):
            raise EngineError(f"the grid of a race is a table's own, and {objective.name!r} is no table")
        points = np.exp(objective.grid(*task.target).points)
        for i in np.random.default_rng(task.seed).permutation(len(points)):
            yield float(points[i, 0]), float(points[i, 1])

    @staticmethod
    def _random(task: SearchTask) -> Iterator[tuple[float, float]]:
        rng = np.random.default_rng(task.seed)
        low, high = np.log(list(task.box.values())).T
        while True:
            lr, batch = np.exp(rng.uniform(low, high))
            yield float(lr), float(batch)


def racer_of(name: str) -> tuple[Racer, Method]:
    """Who races a method, and the method: without a framework where that can be, else the first engine that has it.

    Raises:
        EngineError: there is no such method, or nothing installed races it.
    """
    if name not in available_methods():
        raise EngineError(f"unknown method {name!r}; available: {', '.join(available_methods())}")
    method = method_named(name)
    plain = PlainRacer()
    if name in plain.race_methods:
        return plain, method
    for engine in sorted({e.name for e in entry_points(group=ENTRY_POINT_GROUP)}):
        try:
            racer = get_engine(engine)
        except EngineError:  # its framework is missing
            continue
        if isinstance(racer, Racer) and name in racer.race_methods:
            return racer, method
    raise EngineError(
        f"nothing that is installed races {name!r}; run: pip install 'metaopt-hpo[optuna]', or leave it out"
    )
