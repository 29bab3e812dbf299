"""How a prediction of lr and batch is scored on held-out cells, and the predictions that a law competes with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling import Law, library
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.fitting.pointfit import PointFit
from metaopt_hpo.trials.table import TrialTable

Centre = Callable[[float, float], tuple[float, float]]
"""(size, tokens) → (ln lr, ln batch)."""


def cells_of(table: TrialTable) -> dict[tuple[float, float], CellGrid]:
    """The cells of a table as grids."""
    objective = TableObjective(table)
    return {c: objective.grid(*c) for c in objective.cells}


def score(centre: Centre, cells: dict[tuple[float, float], CellGrid]) -> list[float]:
    """Excess loss (relative) at the predicted optimum of each cell."""
    return [grid.excess(*(math.exp(v) for v in centre(*cell))) for cell, grid in cells.items()]


def choose(law: Law, cells: dict[tuple[float, float], CellGrid]) -> list[float]:
    """Excess loss (relative) of the run that the law chooses among those measured: no interpolation."""
    out = []
    for cell, grid in cells.items():
        lr, batch = np.exp(grid.points).T
        out.append(float(grid.loss[law.choose(*cell, lr, batch)]) / grid.best - 1.0)
    return out


def least_of_any_power_law(
    start: PointFit, cells: dict[tuple[float, float], CellGrid], *, restarts: int = 4, seed: int = 0
) -> list[float]:
    """Excess of the six coefficients whose mean excess on these very cells is least: a bound, not a prediction."""
    rows = np.array([start.axes.design(*cell) for cell in cells])
    p = rows.shape[1]
    rng = np.random.default_rng(seed)

    def values(theta: np.ndarray) -> list[float]:
        optima = zip(rows @ theta[:p], rows @ theta[p:], strict=True)
        return [g.excess(math.exp(x), math.exp(y)) for (x, y), g in zip(optima, cells.values(), strict=True)]

    def mean(theta: np.ndarray) -> float:
        return float(np.mean(values(theta)))

    centre = np.concatenate([start.surface.a, start.surface.b]).astype(np.float64)
    best = centre
    for _ in range(restarts):
        simplex = np.vstack([centre, centre + 0.15 * rng.standard_normal((centre.size, centre.size))])
        options: Any = {"maxiter": 600, "xatol": 1e-3, "fatol": 1e-6, "initial_simplex": simplex}
        found = minimize(mean, centre, method="Nelder-Mead", options=options)
        best = min(best, np.asarray(found.x, dtype=np.float64), key=mean)
    return values(best)


def copying(train: TrialTable) -> Centre:
    """The best run of the nearest cell in (ln size, ln tokens)."""
    known = cells_of(train)

    def centre(size: float, tokens: float) -> tuple[float, float]:
        near = min(known, key=lambda c: math.log(c[0] / size) ** 2 + math.log(c[1] / tokens) ** 2)
        return math.log(known[near].best_lr), math.log(known[near].best_batch)

    return centre


def published(name: str) -> Centre:
    """A complete law of the library."""
    law = library.load(name)
    if not isinstance(law, library.PublishedLaw):
        raise TypeError(f"{name} is not a published law")
    return lambda n, d: (math.log(law.predict_lr(n, d)), math.log(law.predict_batch(n, d)))


def of_law(law: Law) -> Centre:
    """A fitted law's prediction."""

    def centre(size: float, tokens: float) -> tuple[float, float]:
        p = law.predict(size, tokens)
        return math.log(p.lr.value), math.log(p.batch.value)

    return centre
