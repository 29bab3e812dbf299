"""Which cell to run next, by what the runs so far leave unknown of the target's optimum: experimental design.

A linear-Gaussian model of ln lr* over cells (ln size, ln tokens), before any loss is looked at: an intercept that
is anywhere in the searched box, slopes with the fits' own weak prior, cells that scatter about the law, and a
cell's optimum known the better the more runs it holds. It gives the variance of the optimum at any cell. A
variance at the target means a number of target runs until one is good; pilots are worth their cost as long as
they save more than that. The same counts give the same choice in every worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from metaopt_hpo.scaling.forms.surface import CELL_SCATTER, RUN_ERROR, Array

Cell = tuple[float, float]
"""Size and tokens."""

SLOPE_SPREAD = 0.25
"""Prior standard deviation of an exponent: what published laws leave open about the fits' prior means."""

GOOD_LOSS = 2.5e-3
"""Relative loss above the target's best within which a run is good."""

USUAL_CURVATURE = 0.02
"""Curvature of ln loss in ln lr before any bowl is seen: tables measured so far have 0.0065 to 0.04."""

GOOD_REACH = (0.35, 0.75)
"""Bounds on the distance within which a run is good: a bowl of few runs may look too sharp, or too flat. With an
upper one of 0.9 searches whose first bowl looked flat bought few pilots and missed; 0.5 doubles the pilots."""

LEVELS = (3, 4, 5, 6, 8, 10)
"""Runs that a cell may be brought to. With two, a slope is seen and no bowl."""


class Design:
    """What is known of the optimum at a target, from the number of runs in each cell.

    Args:
        counts: runs in each cell, those under way included.
        target: the cell whose optimum is wanted.
        box: standard deviation of ln lr* before anything is run (ln width of the box / √12).
        curvature: of ln loss in ln lr: it says how near the optimum a run must be to be good.
        known: standard deviations of ln lr* at the target and of its exponents in size and tokens, from other tables.
    """

    def __init__(
        self,
        counts: Mapping[Cell, int],
        target: Cell,
        box: float,
        *,
        curvature: float = USUAL_CURVATURE,
        known: tuple[float, float, float] | None = None,
    ) -> None:
        self.target = target
        self.counts = {c: n for c, n in counts.items() if n > 0}
        self.good = good_within(curvature)
        first, *slopes = known or (box, SLOPE_SPREAD, SLOPE_SPREAD)
        spread = np.array([min(first, box), *(min(s, SLOPE_SPREAD) for s in slopes)])
        self._information = np.diag(1.0 / spread**2)
        for cell, n in self.counts.items():
            self._information = self._information + _weight(n) * self._outer(cell)

    def variance(self, cell: Cell) -> float:
        """Of ln lr* at a cell, its scatter about the law included."""
        row = self._row(cell)
        return float(row @ np.linalg.solve(self._information, row)) + CELL_SCATTER**2

    def _row(self, cell: Cell) -> Array:
        # of logarithms: the quotient of the smallest float and a size is 0
        away = (math.log(v) - math.log(t) for v, t in zip(cell, self.target, strict=True))
        return np.array([1.0, *away])

    def _outer(self, cell: Cell) -> Array:
        row = self._row(cell)
        return np.outer(row, row)

    def best_pilot(self, pilots: Sequence[Cell], *, two: bool) -> Cell | None:
        """The pilot to run next, or None where the target itself is the better buy.

        Blocks of runs are added greedily, the largest fall of ln variance per FLOP first, until pilots cost more
        than they can save; the cheapest total along that path, pilots and expected target runs, says how far to
        go. Cost is in target runs.

        Args:
            pilots: cells that may be run.
            two: whether both lr and batch are searched.
        """
        if not pilots:
            return None
        unit = self.target[0] * self.target[1]
        cost = np.array([s * t / unit for s, t in pilots])
        outer = np.array([self._outer(c) for c in pilots])
        runs = np.array([self.counts.get(c, 0) for c in pilots])
        information = self._information
        ceiling = best = target_runs(self._at_target(information[None])[0], self.good, two=two)
        spent, first, found = 0.0, None, None
        levels = np.array(LEVELS)
        while True:
            extra = levels[None, :] - runs[:, None]
            gain = run_weights(levels)[None, :] - run_weights(runs)[:, None]
            j, k = np.nonzero((extra > 0) & (spent + extra * cost[:, None] < ceiling))
            if not j.size:
                return found
            then = information + gain[j, k, None, None] * outer[j]
            now = self._at_target(information[None])[0]
            variance = self._at_target(then)
            i = int(np.argmax(np.log(now / variance) / (extra[j, k] * cost[j])))
            first = pilots[j[i]] if first is None else first
            spent += float(extra[j[i], k[i]] * cost[j[i]])
            information = then[i]
            runs[j[i]] = levels[k[i]]
            total = spent + target_runs(variance[i], self.good, two=two)
            if total < best:
                best, found = total, first

    def _at_target(self, information: Array) -> Array:
        return np.asarray(np.linalg.inv(information)[:, 0, 0] + CELL_SCATTER**2)


def good_within(curvature: float) -> float:
    """Distance from the optimum, ln units of lr, within which a run is good (`GOOD_LOSS`), in a bowl so sharp."""
    return min(max(math.sqrt(2.0 * GOOD_LOSS / max(curvature, 1e-9)), GOOD_REACH[0]), GOOD_REACH[1])


def target_runs(variance: float, good: float, *, two: bool) -> float:
    """Expected number of independent draws of the optimum until one is `good` near, in one or two dimensions."""
    ratio = good**2 / (2.0 * variance)
    return 1.0 / (-math.expm1(-ratio) if two else math.erf(math.sqrt(ratio)))


def _weight(runs: int) -> float:
    return float(run_weights(np.array(runs)))


def run_weights(runs: Array) -> Array:
    """Precision of a cell's optimum as an observation of the law."""
    more = np.maximum(runs - 1.0, 1e-9)
    return np.where(runs > 1, 1.0 / (CELL_SCATTER**2 + RUN_ERROR**2 / more), 0.0)
