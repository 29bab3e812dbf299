"""Robust weighted fit of the surface by variable projection.

Floors (one per cell) and the bowl's coefficients enter linearly and are solved exactly for every trial value
of the centre; only the centre's coefficients are iterated (Golub & Pereyra 1973, with Kaufman's 1975
Jacobian). Runs off the surface lose weight by soft-L1, runs far above their cell's best because no low-order
bowl holds there. Optima at a grid's edge need no special case: no argmin is taken, so such a cell says what it
knows, a slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling import ending
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.forms.bowl import Bowl
from metaopt_hpo.scaling.forms.surface import Array, CurvaturePrior, Surface

NEAR_QUANTILE = 0.1
"""Runs whose excess over their cell's best is below this quantile have full weight; it falls as 1/excess above.

Measured over nine ordered splits of two tables: 0.05 to 0.15 differ by less than 0.005 % of loss, all runs
at equal weight are 0.02 % worse (docs/studies/laws/README.md)."""

LEAST_CURVATURE = 0.2
"""Part of the curvature known beforehand below which no fit of few runs may fall: a surface without a minimum says that
the runs are few, not that there is none."""


@dataclass(frozen=True)
class Prior:
    """Gaussian prior on the centre's coefficients (a then b): mean and precision; precision 0 = none.

    `curvature` is None where nothing is known of the surface's shape but what its form says (`Bowl.further`).
    """

    value: Array
    precision: Array
    curvature: CurvaturePrior | None = None


@dataclass(frozen=True)
class Solution:
    """A fit: the surface, each cell's floor (ln loss), residuals (ln loss) and their robust scale."""

    surface: Surface
    floors: Array
    residual: Array
    scale: float
    weight: Array


@dataclass(frozen=True)
class _Columns:
    """What the linear part is made of at one centre, one row a column: loss, then the bowl's terms."""

    rows: Array
    u: Array
    v: Array


@dataclass(frozen=True)
class _Linear:
    """The linear part solved at one centre under one set of weights; `basis` holds one row a coefficient."""

    columns: _Columns
    h: Array
    residual: Array
    basis: Array
    gram: Array


def solve(
    cells: Cells,
    design: Array,
    start: Surface,
    *,
    prior: Prior,
    weight: Array | None = None,
    scale: float | None = None,
    iterations: int = 40,
) -> Solution:
    """Fit from `start`.

    Args:
        cells: the trials.
        design: (trials × (1 + axes)), rows of `Axes.design`.
        start: initial surface; its `has_batch` decides whether the batch is part of the bowl.
        prior: on (a, b), in plain Gaussian units.
        weight: one non-negative weight a trial (bootstrap), default 1.
        scale: residual scale of the soft-L1 loss (ln loss); estimated when None.
        iterations: Levenberg–Marquardt steps at most.
    """
    problem = _Problem(cells, design, start.has_batch, start.bowl, prior, weight)
    return problem.run(start, scale, iterations)


def nearness(cells: Cells, scale: float) -> Array:
    """Weight of each run by its excess over its cell's best, never stricter than the noise allows."""
    best = np.full(cells.k, np.inf)
    np.minimum.at(best, cells.cell, cells.z)
    excess = cells.z - best[cells.cell]
    above = excess[excess > 0]
    width = float(np.quantile(above, NEAR_QUANTILE)) if above.size else 1.0
    width = max(width, 1.5 * scale, 1e-9)
    return np.asarray(1.0 / np.sqrt(1.0 + (excess / width) ** 2))


class _Problem:
    def __init__(
        self, cells: Cells, design: Array, has_batch: bool, bowl: Bowl, prior: Prior, weight: Array | None
    ) -> None:
        self.cells, self.has_batch, self.bowl, self.prior = cells, has_batch, bowl, prior
        self.used = list(range(len(bowl.names)) if has_batch else bowl.along_lr)
        spread = [0.0, 0.0, 0.0, *(s for _, s in bowl.further)]
        self.further = [(i, spread[j]) for i, j in enumerate(self.used) if j >= 3]
        self.across = np.ascontiguousarray(design.T)
        self.p = design.shape[1]
        count = np.bincount(cells.cell, minlength=cells.k)
        self.first = np.concatenate([[0], np.cumsum(count)[:-1]])  # trials are sorted by cell
        # a cell of 120 runs knows its optimum no √3 better than one of 40: cells scatter about the law
        balance = np.sqrt(np.median(count) / count)[cells.cell]
        self.base = balance if weight is None else balance * weight

    def demean(self, rows: Array, w: Array) -> Array:
        """Weighted cell means taken out of each row."""
        total = np.maximum(np.add.reduceat(w, self.first), 1e-12)
        mean = np.add.reduceat(w * rows, self.first, axis=1) / total
        return np.asarray(rows - mean[:, self.cells.cell])

    def columns(self, theta: Array) -> _Columns:
        """The form's terms at the centre `theta`, without batch those in lr alone.

        Rows, not columns, for a row is contiguous: the solver spends its time here.
        """
        u = self.cells.x - theta[: self.p] @ self.across
        v = self.cells.y - theta[self.p :] @ self.across if self.has_batch else np.zeros_like(u)
        terms = self.bowl.terms(u, v)
        return _Columns(
            np.concatenate([self.cells.z[None], terms if self.has_batch else terms[self.used]]), u, v
        )

    def linear(self, columns: _Columns, w: Array, noise: float, h11: float) -> _Linear:
        """The surface's linear coefficients under the weights `w`.

        Args:
            noise: variance of a run.
            h11: curvature that the form's prior on its further terms is relative to; infinite without one.
        """
        rows = self.demean(columns.rows, w)
        z, basis = rows[0], rows[1:]
        weighted = w * basis
        gram, target = weighted @ basis.T, weighted @ z
        gram.flat[:: len(gram) + 1] += 1e-12 * max(float(gram.trace()), 1e-300)
        known = self.prior.curvature
        if known is None:
            for i, spread in self.further:
                gram[i, i] += noise / (spread * h11) ** 2
        else:
            gram += noise * known.precision
            target = target + noise * (known.precision @ known.value)
        h = np.linalg.solve(gram, target).astype(np.float64)
        if known is not None and h[0] < (least := LEAST_CURVATURE * float(known.value[0])):
            rest = np.linalg.solve(gram[1:, 1:], target[1:] - gram[1:, 0] * least)
            h = np.concatenate([[least], rest])
        return _Linear(columns, h, z - h @ basis, basis, gram)

    def every(self, h: Array) -> Array:
        """All coefficients of the form; those that a fit without batch does not see are 0."""
        out = np.zeros(len(self.bowl.names))
        out[self.used] = h
        return out

    def jacobian(self, lin: _Linear, w: Array) -> Array:
        """Derivative of the residual by the centre, one row a coefficient, projected off the linear part."""
        slope_u, slope_v = self.bowl.slopes(self.every(lin.h), lin.columns.u, lin.columns.v)
        rows = -slope_u * self.across
        if self.has_batch:
            rows = np.vstack([rows, -slope_v * self.across])
        jac = self.demean(rows, w)
        return np.asarray(jac - np.linalg.solve(lin.gram, (w * lin.basis) @ jac.T).T @ lin.basis)

    def objective(self, theta: Array, lin: _Linear, w: Array, noise: float, h11: float) -> float:
        """Weighted squares of the residual and the priors' penalties."""
        off, known = theta - self.prior.value, self.prior.curvature
        penalty = noise * float(self.prior.precision @ off**2)
        if known is None:
            penalty += sum(noise / (s * h11) ** 2 * float(lin.h[i]) ** 2 for i, s in self.further)
        else:
            away = lin.h - known.value
            penalty += noise * float(away @ known.precision @ away)
        return float(w @ lin.residual**2) + penalty

    def run(self, start: Surface, scale: float | None, iterations: int) -> Solution:
        theta = np.concatenate([start.a, start.b]) if self.has_batch else start.a.copy()
        prior = self.prior
        sigma = np.inf if scale is None else scale
        near = np.ones(self.cells.n) if scale is None else nearness(self.cells, scale)
        first = 0.0 if prior.curvature is None else prior.curvature.noise**2
        lin = self.linear(self.columns(theta), self.base * near, first, np.inf)
        damping = 1e-3
        settle = 0 if scale is not None else 14  # steps over which scale and weights may still move
        for step in range(iterations):
            ending.go_on()
            if step < settle:
                sigma = self.scale(lin.residual, near, theta.size)
                near = nearness(self.cells, sigma)
            w = self.base * near / np.sqrt(1.0 + (lin.residual / (1.5 * sigma)) ** 2)
            noise = sigma * sigma
            h11 = max(abs(float(lin.h[0])), 1e-6)
            lin = self.linear(lin.columns, w, noise, h11)
            current = self.objective(theta, lin, w, noise, h11)
            jac = self.jacobian(lin, w)
            normal = (w * jac) @ jac.T + noise * np.diag(prior.precision)
            gradient = jac @ (w * lin.residual) - noise * prior.precision * (theta - prior.value)
            moved = 0.0
            for _ in range(8):
                damped = normal + damping * np.diag(np.diag(normal) + 1e-12)
                delta = np.clip(np.linalg.solve(damped, gradient), -0.5, 0.5)
                trial = self.linear(self.columns(theta + delta), w, noise, h11)
                if self.objective(theta + delta, trial, w, noise, h11) <= current:
                    theta, lin = theta + delta, trial
                    moved = float(np.max(np.abs(delta)))
                    break
                damping *= 6.0
            damping = max(damping / 6.0, 1e-9)
            if step >= settle and moved < 1e-6:
                break
        return self.finish(theta, lin, start, near, sigma)

    def scale(self, residual: Array, near: Array, parameters: int) -> float:
        """Robust standard deviation of a run, pooled with what is known of it beforehand."""
        own = max(_scale(residual, self.base * near, parameters, self.cells), 1e-7)
        known = self.prior.curvature
        if known is None:
            return own
        left = max(self.cells.n - self.cells.k - parameters, 0)
        return float(np.sqrt((left * own**2 + known.runs * known.noise**2) / (left + known.runs)))

    def finish(self, theta: Array, lin: _Linear, start: Surface, near: Array, sigma: float) -> Solution:
        h = lin.h
        bowl = h @ lin.columns.rows[1:]
        b = theta[self.p :] if self.has_batch else start.b
        surface = Surface.of(theta[: self.p], b, self.every(h), self.bowl, has_batch=self.has_batch)
        cells = self.cells
        w = self.base * near / np.sqrt(1.0 + (lin.residual / (1.5 * sigma)) ** 2)
        total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-12)
        floors = np.bincount(cells.cell, w * (cells.z - bowl), minlength=cells.k) / total
        return Solution(surface, floors, cells.z - bowl - floors[cells.cell], float(sigma), w)


def _scale(residual: Array, weight: Array, parameters: int, cells: Cells) -> float:
    """Weighted median absolute residual as a standard deviation, inflated for the parameters spent."""
    size = np.abs(residual)
    order = np.argsort(size)
    cumulative = np.cumsum(weight[order])
    median = float(size[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])
    left = max(cells.n - cells.k - parameters - 4, 0.25 * cells.n)
    return 1.4826 * median * float(np.sqrt(cells.n / left))
