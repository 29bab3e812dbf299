"""Robust weighted fit of the surface by variable projection.

Floors (one per cell) and the bowl's three curvatures enter linearly and are solved exactly for every trial
value of the centre and skew; only those are iterated (Golub & Pereyra 1973, with Kaufman's 1975 Jacobian).
Runs far off the surface lose weight by soft-L1. Optima at a grid's edge need no special case: no argmin is
taken, so such a cell says what it knows, a slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.cells import Cells
from metaopt_hpo.scaling.surface import MAX_SKEW, Array, Surface, skewed


@dataclass(frozen=True)
class Prior:
    """Gaussian prior on slopes and skew, in the solver's order (a, b, γ): value and precision, 0 = none."""

    value: Array
    precision: Array


@dataclass(frozen=True)
class Solution:
    """A fit: the surface, each cell's floor (ln loss), residuals (ln loss) and their robust scale."""

    surface: Surface
    floors: Array
    residual: Array
    scale: float
    objective: float


RIDGE_SKEW = 4.0
"""Precision of γ about 0, in units of the noise's variance: keeps an unresolved skew at none."""


def _layout(p: int, has_batch: bool) -> tuple[int, int, int]:
    """(columns of a, columns of b, columns of γ)."""
    return p, (p if has_batch else 0), (2 if has_batch else 1)


def _demean(m: Array, w: Array, total: Array, cells: Cells) -> Array:
    """Weighted cell means taken out of each column."""
    out = np.empty_like(m)
    for j in range(m.shape[1]):
        mean = np.bincount(cells.cell, w * m[:, j], minlength=cells.k) / total
        out[:, j] = m[:, j] - mean[cells.cell]
    return out


def solve(
    cells: Cells,
    design: Array,
    start: Surface,
    *,
    weight: Array | None = None,
    prior: Prior | None = None,
    scale: float | None = None,
    iterations: int = 40,
) -> Solution:
    """Fit from `start`.

    Args:
        cells: the trials.
        design: (trials × (1 + axes)), rows of `Axes.design`.
        start: initial surface; its `has_batch` decides whether the batch is part of the bowl.
        weight: one non-negative weight a trial (bootstrap), default 1.
        prior: on (a, b, γ).
        scale: residual scale of the soft-L1 loss (ln loss); estimated when None.
        iterations: Levenberg–Marquardt steps at most.
    """
    has_batch = start.has_batch
    pa, pb, pg = _layout(design.shape[1], has_batch)
    base = np.ones(cells.n) if weight is None else weight
    theta = np.concatenate([start.a, start.b if has_batch else [], start.gamma[:pg]])
    lower = np.concatenate([np.full(pa + pb, -np.inf), np.full(pg, -MAX_SKEW)])
    precision = np.zeros(theta.size)
    value = np.zeros(theta.size)
    precision[pa + pb :] = RIDGE_SKEW
    if prior is not None:
        precision = precision + prior.precision
        value = np.where(prior.precision > 0, prior.value, 0.0)
    robust = np.ones(cells.n)
    free_scale = scale is None
    sigma = scale if scale is not None else np.inf

    def linear(theta: Array, w: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
        a, b, g = theta[:pa], theta[pa : pa + pb], theta[pa + pb :]
        u = cells.x - design @ a
        p = skewed(u, g[0])
        if has_batch:
            v = cells.y - design @ b
            q = skewed(v, g[1])
            basis = np.column_stack([0.5 * p * p, p * q, 0.5 * q * q])
        else:
            v = q = np.zeros(cells.n)
            basis = (0.5 * p * p)[:, None]
        total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-12)
        cols = _demean(np.column_stack([cells.z, basis]), w, total, cells)
        z, basis = cols[:, 0], cols[:, 1:]
        gram = basis.T @ (w[:, None] * basis)
        gram[np.diag_indices_from(gram)] += 1e-12 * max(gram.trace(), 1e-300)
        h: Array = np.linalg.solve(gram, basis.T @ (w * z)).astype(np.float64)
        return h, z - basis @ h, basis, u, v, np.column_stack([p, q])

    def objective(r: Array, theta: Array, w: Array) -> float:
        noise = sigma * sigma if np.isfinite(sigma) else float(np.average(r * r, weights=w + 1e-12))
        return float(w @ (r * r)) + noise * float(precision @ (theta - value) ** 2)

    h, r, basis, u, v, pq = linear(theta, base)
    lam = 1e-3
    last = np.inf
    for step in range(iterations):
        if free_scale and (step < 12):
            positive = base > 0
            sigma = max(1.4826 * float(np.median(np.abs(r[positive]))) * _dof(cells, theta.size), 1e-6)
        robust = 1.0 / np.sqrt(1.0 + (r / (1.5 * sigma)) ** 2)
        w = base * robust
        h, r, basis, u, v, pq = linear(theta, w)
        current = objective(r, theta, w)
        total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-12)
        jac = _jacobian(design, h, u, v, pq, theta[pa + pb :], has_batch)
        jac = _demean(jac, w, total, cells)
        gram = basis.T @ (w[:, None] * basis)
        gram[np.diag_indices_from(gram)] += 1e-12 * max(gram.trace(), 1e-300)
        jac = jac - basis @ np.linalg.solve(gram, basis.T @ (w[:, None] * jac))
        noise = sigma * sigma
        normal = jac.T @ (w[:, None] * jac) + noise * np.diag(precision)
        gradient = jac.T @ (w * r) - noise * precision * (theta - value)
        improved = False
        for _ in range(8):
            damped = normal + lam * np.diag(np.diag(normal) + 1e-12)
            delta = np.linalg.solve(damped, gradient)
            delta = np.clip(delta, -1.0, 1.0)
            trial = np.clip(theta + delta, lower, -lower)
            out = linear(trial, w)
            new = objective(out[1], trial, w)
            if new <= current:
                improved = True
                break
            lam *= 6.0
        if not improved:
            break
        theta = trial
        h, r = out[0], out[1]
        lam = max(lam / 6.0, 1e-9)
        settled = abs(last - new) <= 1e-9 * abs(new) + 1e-18 and np.max(np.abs(delta)) < 1e-6
        if settled and (step >= 12 or not free_scale):
            break
        last = new
    w = base * robust
    h, r, basis, u, v, pq = linear(theta, w)
    full = h if has_batch else np.array([h[0], 0.0, 0.0])
    gamma = np.zeros(2)
    gamma[:pg] = theta[pa + pb :]
    surface = Surface(theta[:pa], theta[pa : pa + pb] if has_batch else start.b, full, gamma, has_batch)
    bowl = surface.excess(u, v)
    total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-12)
    floors = np.bincount(cells.cell, w * (cells.z - bowl), minlength=cells.k) / total
    return Solution(
        surface, floors, cells.z - bowl - floors[cells.cell], float(sigma), objective(r, theta, w)
    )


def _dof(cells: Cells, parameters: int) -> float:
    """Inflation of a residual scale for the parameters that the fit spent."""
    left = cells.n - cells.k - parameters
    return float(np.sqrt(cells.n / left)) if left > 0.2 * cells.n else 2.2


def _jacobian(
    design: Array, h: Array, u: Array, v: Array, pq: Array, gamma: Array, has_batch: bool
) -> NDArray[np.float64]:
    """Derivative of the bowl by (a, b, γ), before projection."""
    p, q = pq[:, 0], pq[:, 1]
    h12 = h[1] if has_batch else 0.0
    h22 = h[2] if has_batch else 0.0
    slope_p = h[0] * p + h12 * q
    slope_q = h12 * p + h22 * q
    eu = np.exp(np.clip(gamma[0] * u, -30, 30))
    columns = [-(slope_p * eu)[:, None] * design]
    extra = [(slope_p * _skew_derivative(u, p, eu, gamma[0]))[:, None]]
    if has_batch:
        ev = np.exp(np.clip(gamma[1] * v, -30, 30))
        columns.append(-(slope_q * ev)[:, None] * design)
        extra.append((slope_q * _skew_derivative(v, q, ev, gamma[1]))[:, None])
    return np.hstack(columns + extra)


def _skew_derivative(u: Array, p: Array, e: Array, gamma: float) -> Array:
    """∂s/∂γ = (u e^{γu} − s)/γ, and u²/2 at γ = 0."""
    if abs(gamma) < 1e-4:
        return 0.5 * u * u
    return (u * e - p) / gamma
