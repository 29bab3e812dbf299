"""Targets to race for, in tables of real runs: the largest models of published tables, and live `text-lm`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.race import Race
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.policy.design import Cell
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.gain.replayed import ReplayedObjective, smoothed
from studies.live_table import TARGET


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

    def race(self, seed: int, limit: float) -> Race:
        """The race of one repetition, to be ended after `limit` target runs; its box is what the cells cover."""
        objective = self.objectives[seed % len(self.objectives)]
        cells = [objective.grid(*c).points for c in (*self.pilots, self.target)]
        low = np.exp(np.min([p.min(axis=0) for p in cells], axis=0))
        high = np.exp(np.max([p.max(axis=0) for p in cells], axis=0))
        return Race(
            objective=objective,
            target=self.target,
            pilots=self.pilots,
            lr=(float(low[0]), float(high[0])),
            batch=(float(low[1]), float(high[1])),
            rungs=objective.rungs(*self.target),
            budget=limit * self.unit,
            seed=seed,
        )

    def excess(self, record: TrialRecord) -> float:
        """Relative loss above the best of a finished run of the target; NaN of any other run."""
        done = record.state == "complete" and (record.size, record.target_tokens) == self.target
        return self.truth.excess(record.lr, record.batch) if done else math.nan


def problem_of(name: str, objective: ReplayedObjective, size: float, tokens: float) -> Problem:
    """The nearest cell as target; pilots are all cells of smaller size and no more tokens."""
    target = min(objective.cells, key=lambda c: abs(c[0] / size - 1) + abs(c[1] / tokens - 1))
    pilots = tuple(c for c in objective.cells if c[0] < target[0] * 0.999 and c[1] <= target[1] * 1.001)
    return Problem(name, (objective,), target, pilots, objective.grid(*target), 6.0 * target[0] * target[1])


def table_problem(name: str, table: TrialTable, target: Cell) -> Problem:
    """A target of a table without measured costs."""
    return problem_of(name, ReplayedObjective(table, name=name), *target)


def live_problem(path: Path) -> Problem:
    """The live table: a repetition meets one training seed; the mean over seeds, smoothed, is the truth.

    Seeds that are not finished are left out.

    Raises:
        MetaOptError: no seed is finished.
    """
    from metaopt_hpo.workloads import TextLM

    table = TrialTable.read(path)
    whole = ReplayedObjective(table, name="text-lm")
    width, tokens = TARGET
    target = (float(TextLM(width=width).size), float(tokens))
    if target not in whole.cells:
        raise MetaOptError(f"{path} has no run of width {width} yet; run: python -m studies.live_table")
    records = table.records()
    seeds = sorted({r.seed for r in records})
    each = (TrialTable.from_records([r for r in records if r.seed == s]) for s in seeds)
    objectives = [ReplayedObjective(t, name="text-lm") for t in each]
    return Problem(
        f"live text-lm, width {width}",
        tuple(o for o in objectives if o.cells == whole.cells),
        target,
        tuple(c for c in whole.cells if c != target),
        smoothed(whole.grid(*target)),
        whole.cost(Configuration(size=target[0], tokens=target[1], batch=1.0, lr=1.0)),
    )


def problems(data: Path | None, live: Path | None) -> list[Problem]:
    """Targets of the tables at hand.

    Args:
        data: folder of the published tables, docs/studies/laws/README.md says which.
        live: `live_table`'s file.
    """
    out: list[Problem] = []
    if data is not None:
        out += _largest("Step Law 429 M", benchmarks.steplaw(data), (4e10, 5e10, 1e11))
        out += _largest("OpenEuroLLM 589 M", benchmarks.openeurollm(data), (5e10, 1.2e11, 3e11))
        name = "std no scheduler"
        widths = benchmarks.mup_widths(data)[name]
        out.append(table_problem(f"muP table, {name}", widths, (float(widths.frame["size"].max()), 5e7)))
    if live is not None and live.exists():
        out.append(live_problem(live))
    return out


def _largest(name: str, table: TrialTable, tokens: Sequence[float]) -> Iterator[Problem]:
    objective = ReplayedObjective(table, name=name)
    for t in tokens:
        yield problem_of(f"{name} × {t / 1e9:.0f} B", objective, max(objective.sizes), t)
