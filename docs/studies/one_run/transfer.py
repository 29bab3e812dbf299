"""A law through the step sizes that single runs committed to, asked for the next width."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from studies.one_run.cases import TEXT, Case
from studies.one_run.results import Results, losses


@dataclass(frozen=True)
class Transfer:
    """A law through MetaOptimize's own step sizes at smaller widths, asked for the next one."""

    case: Case
    sizes: int
    predicted: float
    """Committed step size that a line in ln size through the smaller widths gives here."""
    found: float
    """The tuned WSD schedule's best lr here: vertex of a parabola in ln lr through the grid's best three."""
    excess: float
    """Loss of WSD at the predicted lr, interpolated in ln lr, over the grid's best, minus 1."""

    @property
    def ratio(self) -> float:
        """Predicted over found."""
        return self.predicted / self.found


def transfers(results: Results) -> list[Transfer]:
    """For each width with at least two smaller ones: the line through theirs, and what it would have cost here."""
    known = []
    for case in TEXT:
        rates = [
            math.log(r.found_lr)
            for s in results.seeds()
            if (r := results.own(case, s)) is not None and r.found_lr > 0
        ]
        seeds = [
            s
            for s in results.seeds()
            if all(math.isfinite(results.run(case, "wsd", s, lr)) for lr in case.grid)
        ]
        if rates and seeds:
            size = next(
                r.size for s in seeds if (r := results.record(case, "wsd", s, case.grid[0])) is not None
            )
            curve = np.log(losses(results, case, ("wsd",), seeds)).mean(axis=1)
            known.append((case, math.log(size), statistics.fmean(rates), curve))
    found = []
    for i in range(2, len(known)):
        case, size, _, curve = known[i]
        slope, start = np.polyfit([k[1] for k in known[:i]], [k[2] for k in known[:i]], 1)
        at = float(slope * size + start)
        grid = np.log(case.grid)
        vertex, least = _vertex(grid, curve)
        inside = float(np.clip(at, grid[0], grid[-1]))
        here = float(_parabola(grid, curve, inside))
        found.append(Transfer(case, i, math.exp(at), math.exp(vertex), math.expm1(max(0.0, here - least))))
    return found


def _around(x: np.ndarray, y: np.ndarray, at: float | None = None) -> slice:
    middle = int(np.argmin(y)) if at is None else int(np.argmin(np.abs(x - at)))
    middle = min(max(middle, 1), len(x) - 2)
    return slice(middle - 1, middle + 2)


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Place and height of the minimum of a parabola through the lowest point and its neighbours."""
    part = _around(x, y)
    a, b, c = np.polyfit(x[part], y[part], 2)
    if a <= 0:
        i = int(np.argmin(y))
        return float(x[i]), float(y[i])
    at = float(np.clip(-b / (2 * a), x[part][0], x[part][-1]))
    return at, float(a * at * at + b * at + c)


def _parabola(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Value at `at` of the parabola through the three nearest points."""
    part = _around(x, y, at)
    return float(np.polyval(np.polyfit(x[part], y[part], 2), at))
