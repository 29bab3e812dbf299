"""Where a criterion is smallest along lr, with honest edges: interior minima, censored ones, and their regression.

A grid's edge minimum is an interval-censored observation (the optimum lies beyond), never an optimum and never
dropped. Everything broadcasts over leading axes, so that a bootstrap is one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

Array = NDArray[np.float64]
_EM_ROUNDS = 200
_EM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Minima:
    """Optimal ln lr of each cell, as an interval: a point where low == high."""

    low: Array
    """Lower end; −inf at the grid's lower edge, NaN where the cell has no usable value."""
    high: Array
    value: Array
    """ln of the criterion at the minimum."""

    @property
    def censored(self) -> NDArray[np.bool_]:
        """Cells whose optimum is only known to lie in an interval."""
        return np.asarray(np.isfinite(self.value) & (self.low != self.high))

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Cells with at least one finite value of the criterion."""
        return np.isfinite(self.value)


def log_parabola(log_lr: ArrayLike, log_value: ArrayLike) -> Minima:
    """Minimum of a parabola through the best point and its neighbours in (ln lr, ln criterion).

    Args:
        log_lr: increasing grid, shape (..., lrs), broadcast against `log_value`.
        log_value: ln of the criterion, shape (..., lrs); NaN and +inf (diverged runs) count as worse than anything.

    Returns:
        Shape (...). An edge minimum gives the half-line beyond the midpoint to its neighbour; one beside a diverged run
        gives the interval between the midpoints to its neighbours.

    Raises:
        ValueError: fewer than three lrs.
    """
    y = np.asarray(log_value, dtype=float)
    y = np.where(np.isfinite(y), y, np.inf)
    x = np.broadcast_to(np.asarray(log_lr, dtype=float), y.shape)
    n = y.shape[-1]
    if n < 3:
        raise ValueError(f"a minimum needs at least 3 learning rates, got {n}")
    best = np.argmin(y, axis=-1)
    inner = np.clip(best, 1, n - 2)[..., None]

    def at(values: Array, offset: int) -> Array:
        return np.asarray(np.take_along_axis(values, inner + offset, axis=-1)[..., 0])

    x0, x1, x2 = at(x, -1), at(x, 0), at(x, 1)
    y0, y1, y2 = at(y, -1), at(y, 0), at(y, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        bend = (right - left) / (x2 - x0)
        vertex = 0.5 * (x0 + x1) - 0.5 * left / bend
    lower_mid, upper_mid = 0.5 * (x0 + x1), 0.5 * (x1 + x2)
    smooth = np.isfinite(vertex) & (bend > 0) & np.isfinite(y0) & np.isfinite(y2)
    low = np.where(smooth, vertex, lower_mid)
    high = np.where(smooth, vertex, upper_mid)
    low, high = np.where(best == 0, -np.inf, low), np.where(best == 0, lower_mid, high)
    low, high = np.where(best == n - 1, upper_mid, low), np.where(best == n - 1, np.inf, high)
    with np.errstate(invalid="ignore"):
        depth = np.where(smooth & (best > 0) & (best < n - 1), y1 - bend * (vertex - x1) ** 2, y.min(axis=-1))
    dead = ~np.isfinite(y.min(axis=-1))
    return Minima(np.where(dead, np.nan, low), np.where(dead, np.nan, high), np.where(dead, np.nan, depth))


def censored_fit(
    design: ArrayLike, low: ArrayLike, high: ArrayLike, weights: ArrayLike | None = None
) -> Array:
    """Maximum-likelihood Gaussian regression on points and intervals (Tobit, by expectation-maximisation).

    Args:
        design: shape (..., cells, unknowns).
        low, high: interval of each observation, shape (..., cells); equal ends are exact; NaN is left out.
        weights: shape (..., cells), such as bootstrap counts; default 1.

    Returns:
        Coefficients, shape (..., unknowns); NaN where fewer exact observations than unknowns remain, as intervals
        alone do not pin a plane down.
    """
    a, b = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    x = np.broadcast_to(np.asarray(design, dtype=float), (*a.shape, np.shape(design)[-1]))
    usable = np.isfinite(a) | np.isfinite(b)
    w = usable * (
        np.ones_like(a) if weights is None else np.broadcast_to(np.asarray(weights, dtype=float), a.shape)
    )
    # One row a problem: each is iterated until it converges, the others rest.
    shape = (*a.shape[:-1], x.shape[-1])
    x, w = x.reshape(-1, *x.shape[-2:]), w.reshape(-1, a.shape[-1])
    a, b, usable = (v.reshape(-1, v.shape[-1]) for v in (a, b, usable))
    open_ = usable & (a != b)
    # Start censored cells at the finite end of their interval.
    y = np.where(np.isfinite(a) & np.isfinite(b), 0.5 * (a + b), np.where(np.isfinite(a), a, b))
    y = np.where(usable, y, 0.0)
    exact = usable & ~open_
    solve = _solver(x, w)
    good = np.asarray(np.isfinite(solve).all(axis=(-2, -1)))
    if open_.any():
        good = good & (_rank(x, w * exact) == x.shape[-1])
    beta = np.where(good[:, None], _apply(solve, y), np.nan)
    active = np.flatnonzero(good & np.any(open_ & (w > 0), axis=1))
    # What the iteration reads, of the problems that are still moving: none of it changes from round to round.
    xs, ws, ys, low_, high_, opened, solver = (v[active] for v in (x, w, y, a, b, open_, solve))
    sigma = np.maximum(_root_mean_square(xs, ys, beta[active], ws, np.zeros_like(ys)), 1e-3)
    for _ in range(_EM_ROUNDS):
        if not len(active):
            break
        mu = _apply(xs, beta[active])
        mean, spread = _truncated(
            mu[opened], np.broadcast_to(sigma[:, None], mu.shape)[opened], low_[opened], high_[opened]
        )
        ys, extra = ys.copy(), np.zeros_like(ys)
        ys[opened], extra[opened] = mean, spread
        following = _apply(solver, ys)
        moving = np.max(np.abs(following - beta[active]), axis=1) > _EM_TOLERANCE
        beta[active] = following
        sigma = np.maximum(_root_mean_square(xs, ys, following, ws, extra), 1e-3)
        if not moving.all():
            active, sigma = active[moving], sigma[moving]
            xs, ws, ys, low_, high_, opened, solver = (
                v[moving] for v in (xs, ws, ys, low_, high_, opened, solver)
            )
    return np.asarray(beta.reshape(shape))


def _rank(x: Array, w: Array) -> NDArray[np.intp]:
    return np.asarray(np.linalg.matrix_rank(np.swapaxes(x * w[..., None], -1, -2) @ x, hermitian=True))


def _solver(x: Array, w: Array) -> Array:
    """(XᵀWX)⁻¹XᵀW, which takes observations to coefficients; NaN where the design is not of full rank."""
    weighted = np.swapaxes(x * w[..., None], -1, -2)
    normal = weighted @ x
    good = (_rank(x, w) == x.shape[-1])[..., None, None]
    return np.asarray(
        np.where(good, np.linalg.solve(np.where(good, normal, np.eye(x.shape[-1])), weighted), np.nan)
    )


def _apply(matrix: Array, vector: Array) -> Array:
    return np.asarray((matrix @ vector[..., None])[..., 0])


def _root_mean_square(x: Array, y: Array, beta: Array, w: Array, extra: Array) -> Array:
    residual = y - _apply(x, beta)
    return np.asarray(np.sqrt((w * (residual**2 + extra)).sum(axis=-1) / np.maximum(w.sum(axis=-1), 1.0)))


def _truncated(mu: Array, sigma: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Mean and variance of a Gaussian given that it lies in [low, high]; one end may be infinite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        a, b = (low - mu) / sigma, (high - mu) / sigma
        # Reflect so that the interval lies left of the mean, where log_ndtr keeps its precision.
        flip = np.where(np.isfinite(a), a, -np.inf) > -np.where(np.isfinite(b), b, np.inf)
        a, b = np.where(flip, -b, a), np.where(flip, -a, b)
        log_b = np.where(np.isfinite(b), log_ndtr(np.where(np.isfinite(b), b, 0.0)), 0.0)
        log_a = np.where(np.isfinite(a), log_ndtr(np.where(np.isfinite(a), a, 0.0)), -np.inf)
        log_mass = log_b + np.log1p(-np.exp(np.minimum(log_a - log_b, -1e-12)))

        def hazard(z: Array) -> Array:
            finite = np.isfinite(z)
            return np.where(
                finite, np.exp(-0.5 * np.where(finite, z, 0.0) ** 2 - log_mass) / np.sqrt(2 * np.pi), 0.0
            )

        ha, hb = hazard(a), hazard(b)
        shift = ha - hb
        tilt = np.where(np.isfinite(a), a, 0.0) * ha - np.where(np.isfinite(b), b, 0.0) * hb
        variance = np.clip(1 + tilt - shift**2, 0.0, 1.0)
    mean = mu + sigma * np.where(flip, -shift, shift)
    return np.clip(mean, low, high), sigma**2 * variance
