"""What is odd about a table's runs and quantities: exploded runs, a bowl that noise may feign, sizes in two units."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.solver import Solution, nearness
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.surface import Array, Surface

STRAY = 10.0
"""Standard deviations of a run above the surface from which it counts as exploded: noise has no such tail."""

EXPLODED = 0.1
"""Least distance (ln loss) above the surface of a run that counts as diverged though it went on to its end."""

LEAST_STRAY = 0.02
"""Least distance (ln loss) above the surface of an exploded run: a bowl that is a little wrong is no explosion."""

SEEN = 2.5
"""Standard errors of the curvature in ln lr from which a bowl is seen; below, noise alone may have made it."""

UNITS = (1e3, 1e6, 1e9)
"""Factors by which quantities are written in thousands, millions, billions."""

GAP = 100.0
"""Factor between neighbouring sizes of a table that no ladder of models has."""


def exploded(cells: Cells, axes: Axes, surface: Surface, floors: Array, scale: float) -> NDArray[np.bool_]:
    """Runs that exploded, by bad luck or past an edge of stability: a tenth or more above a surface that promised less.

    Args:
        floors: ln loss at the bottom of each cell's bowl.
        scale: standard deviation (ln loss) of a run about the surface.
    """
    return _above(cells, axes, surface, floors, max(STRAY * scale, EXPLODED))


def strays(cells: Cells, axes: Axes, solution: Solution) -> NDArray[np.bool_]:
    """Runs above the surface by bad luck: a harder one of the same cell was not.

    Harder is a lr no smaller and a batch no larger. Past an edge of stability all explode; those are not meant.
    """
    least = max(STRAY * solution.scale, LEAST_STRAY)
    high = _above(cells, axes, solution.surface, solution.floors, least)
    out = np.zeros(cells.n, dtype=bool)
    for i in np.flatnonzero(high):
        harder = (cells.cell == cells.cell[i]) & ~high
        harder &= (cells.x >= cells.x[i] - 1e-6) & (cells.y <= cells.y[i] + 1e-6)
        out[i] = bool(harder.any())
    return out


def _above(cells: Cells, axes: Axes, surface: Surface, floors: Array, least: float) -> NDArray[np.bool_]:
    """Runs further than `least`, and than the surface's own excess there, above it."""
    x, y = surface.centre(axes.design(cells.size, cells.tokens, cells.extra))
    foretold = surface.excess(cells.x - x, (cells.y - y) * surface.has_batch)
    residual = cells.z - floors[cells.cell] - foretold
    return np.asarray((residual > least) & (residual > np.maximum(foretold, 0.0)))


def flat_bowl(cells: Cells, axes: Axes, solution: Solution) -> list[Caution]:
    """A caution where the curvature in ln lr is not told from noise: then no lr is better than another, or all are."""
    s = solution.surface
    x, y = s.centre(axes.design(cells.size, cells.tokens, cells.extra))
    u, v = cells.x - x, cells.y - y
    shape = s.bowl.terms(u, v)
    terms = [*(shape if s.has_batch else shape[list(s.bowl.along_lr)]), u, *([v] if s.has_batch else [])]
    w = nearness(cells, solution.scale) / np.sqrt(1.0 + (solution.residual / (1.5 * solution.scale)) ** 2)
    total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-300)

    def demeaned(values: Array) -> Array:
        return np.asarray(
            values - (np.bincount(cells.cell, w * values, minlength=cells.k) / total)[cells.cell]
        )

    rows = np.array([demeaned(t) for t in terms])
    inverse = np.linalg.pinv((w * rows) @ rows.T)
    scattered = (w * demeaned(solution.residual) * rows) @ (w * demeaned(solution.residual) * rows).T
    variance = float((inverse @ scattered @ inverse)[0, 0]) * cells.n / max(cells.n - cells.k - len(terms), 1)
    if float(s.h[0]) >= SEEN * math.sqrt(max(variance, 0.0)):
        return []
    message = (
        f"the losses hardly depend on lr: their curvature in ln lr, {float(s.h[0]):.2g}, is less than {SEEN:g} "
        "standard errors above zero, so any lr may be as good: widen the range of lr, or add seeds"
    )
    return [Caution("flat-bowl", message)]


def mixed_units(cells: Cells) -> list[Caution]:
    """A caution where sizes, or tokens, fall into two groups that one unit would bring together."""
    out = []
    for name, values in (("sizes", cells.cell_size), ("tokens", cells.cell_tokens)):
        distinct = np.unique(values)
        steps = distinct[1:] / distinct[:-1]
        if not steps.size or steps.max() < GAP:
            continue
        i = int(steps.argmax())
        low, high = distinct[: i + 1], distinct[i + 1 :]
        for unit in UNITS:
            together = np.sort(np.concatenate([low * unit, high]))
            if (together[1:] / together[:-1]).max() < math.sqrt(GAP):
                message = (
                    f"{name} up to {low[-1]:.4g} and from {high[0]:.4g} on look like two units, {unit:g} apart: give "
                    "all in one (units=… when reading the table)"
                )
                out.append(Caution("units-mixed", message))
                break
    return out
