"""A learned alternative: a Gaussian process on the surface's residuals over (ln lr, ln batch, ln size, ln tokens).

It competes with the surface alone on the same ordered splits (`comparison.evaluate`, docs/laws.md) and is not
part of `fit`: it carries a nearby cell's deviation over to the target, which helps by less than one run's noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from metaopt_hpo.scaling.cells import Cells
from metaopt_hpo.scaling.checks import choose_axes
from metaopt_hpo.scaling.ordered import Centre
from metaopt_hpo.scaling.pointfit import slope_prior, start_surface
from metaopt_hpo.scaling.solver import solve
from metaopt_hpo.scaling.surface import Array

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

    def fit(self, cells: Cells) -> Centre:
        """Fit the surface, then the process on what it leaves: (size, tokens) → (ln lr*, ln B*)."""
        axes, _ = choose_axes(cells)
        start = start_surface(cells, axes, True)
        design = axes.design(cells.size, cells.tokens, cells.extra)
        solution = solve(cells, design, start, prior=slope_prior(axes, start, None))
        x, y = solution.surface.centre(design)
        points = np.column_stack([cells.x - x, cells.y - y, np.log(cells.size), np.log(cells.tokens)])
        points = points / np.array(self.length)
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
                at = np.array([p[0], p[1], math.log(size), math.log(tokens)]) / np.array(self.length)
                k = (self.amplitude * s) ** 2 * _kernel(at[None, :], points)[0]
                return float(solution.surface.excess(p[:1], p[1:])[0] + k @ alpha)

            best = minimize(value, np.zeros(2), method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-8})
            shift = np.clip(np.asarray(best.x, dtype=float), -1.5, 1.5)
            return x0 + float(shift[0]), y0 + float(shift[1])

        return centre


def _kernel(a: Array, b: Array) -> Array:
    """Squared exponential of unit amplitude and length."""
    d = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-0.5 * d))
