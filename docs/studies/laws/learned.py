"""A learned alternative: a Gaussian process on the surface's residuals over (ln lr, ln batch, ln size, ln tokens).

Where a table records how its runs went, gradient noise and convergence speed can be inputs too. It competes with the
surface alone on the same ordered splits (`make laws`, README.md beside this) and is not part of `fit`: it carries a
nearby cell's deviation over to the target, which helps by less than one run's noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.checks import choose_axes
from metaopt_hpo.scaling.fitting.ordered import Centre
from metaopt_hpo.scaling.fitting.pointfit import slope_prior, start_surface
from metaopt_hpo.scaling.fitting.solver import solve
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.trials.table import TrialTable

MAX_RUNS = 3000
"""A Gaussian process costs the cube of this; more runs are thinned evenly."""


@dataclass(frozen=True, kw_only=True)
class ResidualGP:
    """Settings of the process, in units of the surface's noise and of ln.

    Attributes:
        amplitude: standard deviation over that of one run.
        length: length scales in ln lr and ln batch (about the optimum), ln size, ln tokens.
    """

    amplitude: float = 2.0
    length: tuple[float, float, float, float] = (2.0, 2.0, 0.4, 0.7)

    dynamics_length: float = 2.0
    """Length scale of each of a run's dynamics, in standard deviations."""

    def fit(self, cells: Cells, dynamics: Array | None = None) -> Centre:
        """Fit the surface, then the process on what it leaves: (size, tokens) → (ln lr*, ln B*).

        Args:
            cells: the trials.
            dynamics: (trials × features), see `run_dynamics`; NaN where a run recorded none. A run that has yet
                to start has none either: its dynamics are predicted by ridge regression on where it lies.
        """
        axes, _ = choose_axes(cells)
        start = start_surface(cells, axes, True)
        design = axes.design(cells.size, cells.tokens, cells.extra)
        solution = solve(cells, design, start, prior=slope_prior(axes, start, None))
        x, y = solution.surface.centre(design)
        places = np.column_stack([cells.x - x, cells.y - y, np.log(cells.size), np.log(cells.tokens)])
        own = np.zeros((cells.n, 0)) if dynamics is None else dynamics
        expected = _Predicted.of(places, own)
        points = self._inputs(places, expected.or_own(places, own))
        every = max(math.ceil(cells.n / MAX_RUNS), 1)
        points, r = points[::every], solution.residual[::every]
        w, cell = solution.weight[::every], cells.cell[::every]
        s = solution.scale
        gram = (self.amplitude * s) ** 2 * _kernel(points, points)
        gram += (10.0 * s) ** 2 * (cell[:, None] == cell[None, :])  # each cell's floor stays free
        gram[np.diag_indices_from(gram)] += s * s / np.maximum(w, 1e-6)
        alpha = cho_solve(cho_factor(gram), r)

        def centre(size: float, tokens: float) -> tuple[float, float]:
            x0, y0 = (float(v) for v in solution.surface.centre(axes.design(size, tokens)))

            def value(p: Array) -> float:
                place = np.array([[p[0], p[1], math.log(size), math.log(tokens)]])
                k = (self.amplitude * s) ** 2 * _kernel(self._inputs(place, expected.at(place)), points)[0]
                return float(solution.surface.excess(p[:1], p[1:])[0] + k @ alpha)

            best = minimize(value, np.zeros(2), method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-8})
            shift = np.clip(np.asarray(best.x, dtype=float), -1.5, 1.5)
            return x0 + float(shift[0]), y0 + float(shift[1])

        return centre

    def _inputs(self, places: Array, dynamics: Array) -> Array:
        """What the kernel compares, in units of the length scales."""
        return np.hstack([places / np.array(self.length), dynamics / self.dynamics_length])


def run_dynamics(table: TrialTable, cells: Cells) -> Array | None:
    """(trials × 2): ln gradient-noise scale near the end, and ln loss lost per e-fold of tokens on the way there.

    None where fewer than half of the trials record both.
    """
    frame = table.frame.iloc[cells.row]
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.log(frame["grad_noise"].to_numpy(dtype=float))
    columns = (frame["curve_tokens"], frame["curve_loss"], frame["tokens"])
    speed = [_speed(t, loss, total) for t, loss, total in zip(*columns, strict=True)]
    out = np.column_stack([noise, speed])
    out[~np.isfinite(out)] = np.nan
    return out if np.isfinite(out).all(axis=1).mean() >= 0.5 else None


def _speed(tokens: Sequence[float] | None, loss: Sequence[float] | None, total: float) -> float:
    """−d ln loss / d ln tokens between an eighth and a half of a run: before a schedule cools it."""
    if tokens is None or loss is None or len(tokens) != len(loss):
        return math.nan
    t, z = np.asarray(tokens, dtype=float), np.asarray(loss, dtype=float)
    use = (t >= total / 8.0) & (t <= total / 2.0) & np.isfinite(z) & (z > 0)
    if use.sum() < 2:
        return math.nan
    return -float(np.polyfit(np.log(t[use]), np.log(z[use]), 1)[0])


@dataclass(frozen=True)
class _Predicted:
    """Dynamics, in their standard deviations, by ridge regression: quadratic in lr and batch, linear in scale."""

    middle: Array
    scale: Array
    coefficients: Array

    @classmethod
    def of(cls, places: Array, dynamics: Array) -> _Predicted:
        known = np.isfinite(dynamics).all(axis=1)
        scale, middle = np.maximum(dynamics[known].std(axis=0), 1e-9), places.mean(axis=0)
        x = _terms(places[known] - middle)
        ridge = np.diag([1e-9, *[1.0] * (x.shape[1] - 1)])
        return cls(middle, scale, np.linalg.solve(x.T @ x + ridge, x.T @ (dynamics[known] / scale)))

    def at(self, places: Array) -> Array:
        """Of runs that have yet to start."""
        return np.asarray(_terms(places - self.middle) @ self.coefficients)

    def or_own(self, places: Array, dynamics: Array) -> Array:
        """What runs recorded; predicted where they recorded nothing."""
        missing = np.isnan(dynamics).any(axis=1, keepdims=True)
        return np.where(missing, self.at(places), dynamics / self.scale)


def _terms(p: Array) -> Array:
    return np.column_stack([np.ones(len(p)), p, p[:, 0] ** 2, p[:, 0] * p[:, 1], p[:, 1] ** 2])


def _kernel(a: Array, b: Array) -> Array:
    """Squared exponential of unit amplitude and length."""
    d = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-0.5 * d))
