"""The best weight decay as a law of size and tokens, fitted to the best losses at each weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from metaopt_hpo.scaling.fitting.cells import Cells, make_cells
from metaopt_hpo.scaling.fitting.solver import Prior, Solution, solve
from metaopt_hpo.scaling.fitting.uncertainty import bootstrap_weights, jitter
from metaopt_hpo.scaling.forms.axes import Array, Axes
from metaopt_hpo.scaling.forms.decay import NAME, Decay, published_decay
from metaopt_hpo.scaling.forms.surface import Surface

LEAST = 3
"""Weight decays at one size and number of tokens from which an optimum shows."""

INTERCEPT_SPREAD = 1.0
"""Standard deviation of ln λ* about the published law before any run."""

SLOPE_SPREAD = 0.25
"""Standard deviation of its exponents about those that follow from the published law and the table's own lr, batch."""

CURVATURE = 0.005
"""Curvature of ln loss in ln λ from which a fit begins."""


def fit_decay(
    cells: Cells, axes: Axes, solution: Solution, *, draws: int, seed: int, start: Decay | None = None
) -> Decay | None:
    """The law of the best weight decay; None where it is no coordinate, too few were run, or they show no minimum.

    Args:
        cells, axes, solution: of the fitted surface; each cell holds one weight decay.
        draws: of the intervals.
        seed: of the draws.
        start: an earlier fit, whose draws are kept about the new optimum.
    """
    extra = cells.cell_extra()
    if NAME not in axes.names:
        return None
    others: Mapping[str, Array] = {k: v for k, v in extra.items() if k != NAME}
    ones = np.ones(cells.k)
    points = make_cells(
        cells.cell_size, cells.cell_tokens, ones, extra[NAME], np.exp(solution.floors), dict(others)
    )
    counts = [np.unique(points.x[points.cell == j]).size for j in range(points.k)]
    if max(counts) < LEAST:
        return None
    names = axes.scale_names
    scale = Axes(names, axes.centre[: len(names)])
    design = scale.design(points.size, points.tokens)
    prior = _prior(scale, axes, solution)
    first = Surface(prior.value, np.zeros_like(prior.value), np.array([CURVATURE, 0.0, 0.0]), 0.0, False)
    found = solve(points, design, first, prior=prior)
    h = float(found.surface.h[0])
    if h <= 0:
        return None
    c = found.surface.a
    span = float(extra[NAME].min()), float(extra[NAME].max())
    if start is not None and start.c.size == c.size:
        return Decay(c, h, start.draws + (c - start.c), span, points.n)
    rng = np.random.default_rng(seed)
    drawn = [
        solve(
            points,
            design,
            found.surface,
            weight=bootstrap_weights(points, rng),
            prior=jitter(prior, (), rng),
            scale=max(found.scale, solution.scale),
            iterations=6,
        ).surface.a
        for _ in range(draws)
    ]
    return Decay(c, h, np.array(drawn), span, points.n)


def _prior(scale: Axes, axes: Axes, solution: Solution) -> Prior:
    """On (intercept, slopes) of ln λ*: what the published timescale makes of the table's own lr* and batch*."""
    s, k = solution.surface, len(scale.names)

    def at(moved: int | None) -> float:
        t = np.zeros(len(axes.names) + 1)
        t[0] = 1.0
        place = {"size": 18.0, "tokens": 23.0, **dict(zip(scale.names, scale.centre, strict=True))}
        if moved is not None:
            t[1 + moved] = 1.0
            place[scale.names[moved]] += 1.0
        lr, batch = math.exp(float(t @ s.a)), math.exp(float(t @ s.b))
        return math.log(published_decay(math.exp(place["size"]), math.exp(place["tokens"]), lr, batch)[0])

    first = at(None)
    value = np.array([first, *(at(i) - first for i in range(k))])
    return Prior(value, 1.0 / np.array([INTERCEPT_SPREAD, *[SLOPE_SPREAD] * k]) ** 2)


def lowered_by(decay: Decay | None, cells: Cells, axes: Axes) -> Array:
    """ln loss of each cell above that at its best weight decay."""
    if decay is None:
        return np.zeros(cells.k)
    rows = axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra())
    return decay.excess(rows, np.log(cells.cell_extra()[NAME]))
