"""How sure a fit is: a hierarchical bootstrap, the cells' scatter about the law, and the test for curvature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import Caution, Estimate
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.floor_error import draw_doubt, draw_floors
from metaopt_hpo.scaling.fitting.floor_fit import Moved
from metaopt_hpo.scaling.fitting.ordered import cell_grid
from metaopt_hpo.scaling.fitting.solver import LEAST_CURVATURE, Prior, Solution, solve
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.floor import PRIOR as FLOOR_PRIOR
from metaopt_hpo.scaling.forms.floor import Floor
from metaopt_hpo.scaling.forms.surface import CELL_SCATTER, Array, CurvaturePrior, Surface

CURVATURE_SPREAD = 0.1
"""Prior standard deviation of a second-order coefficient, ln lr or ln batch by the product of two axes' e-folds."""

SPARE_CELLS = 3
"""Cells beyond the coefficients of a fit with curvature below which its jackknife says nothing."""

MIN_CURVATURE = 0.01
"""Prior on second-order coefficients, and the least that is worth a caution (5 % of lr at nine e-folds²)."""

USUAL_SCATTER = 0.3
"""Distance (ln units) of a cell's best run from the law in the tables here."""

STEEPEST_VALLEY = 3.0
"""Bound on d ln lr* / d ln B in a draw: theory and tables have 0.5 to 1, a bowl that a draw left flat has anything."""


def bootstrap(
    cells: Cells,
    design: Array,
    solution: Solution,
    slopes: Prior,
    floor: Floor,
    rng: np.random.Generator,
    draws: int,
    floor_prior: Mapping[str, tuple[float, float]] = FLOOR_PRIOR,
    moved: Moved | None = None,
    lowered: Array | float = 0.0,
) -> Draws:
    """Parameters fitted to reweighted sizes, cells and runs.

    Where a base is known, few runs may be all there are, and reweighting them would leave draws that have seen
    none. Then losses are perturbed by their noise and each cell's optimum by its scatter instead, beside the prior:
    in a linear Gaussian model such draws are the posterior's (randomize-then-optimize, Bardsley et al. 2014).
    """
    known = slopes.curvature is not None
    a, b, valley, bottoms, shares, doubts = [], [], [], [], [], []
    per_cell = np.bincount(cells.cell, minlength=cells.k)
    for _ in range(draws):
        weight = np.ones(cells.n) if known else bootstrap_weights(cells, rng)
        s = solve(
            _perturbed(cells, solution, rng) if known else cells,
            design,
            solution.surface,
            weight=weight,
            prior=jitter(slopes, range(0, slopes.value.size, design.shape[1]), rng),
            scale=solution.scale,
            iterations=6,
        )
        share = np.bincount(cells.cell, weight, minlength=cells.k) / np.maximum(per_cell, 1)
        a.append(s.surface.a)
        b.append(s.surface.b)
        slope = -float(s.surface.h[1]) / max(float(s.surface.h[0]), 1e-3 * float(solution.surface.h[0]))
        valley.append(min(max(slope, -STEEPEST_VALLEY), STEEPEST_VALLEY))
        bottoms.append(s.floors - lowered)
        shares.append(cells.cell_weight() * share)
        doubts.append(draw_doubt(floor, cells.cell_size, cells.cell_tokens, rng, prior=floor_prior))
    floors = draw_floors(
        floor, cells.cell_size, cells.cell_tokens, np.array(bottoms), np.array(shares), doubts, moved
    )
    return Draws(np.array(a), np.array(b), np.array(valley), floors)


def _perturbed(cells: Cells, solution: Solution, rng: np.random.Generator) -> Cells:
    """The cells with losses, and where each cell's optimum lies, moved as their noise would."""
    shift = CELL_SCATTER * rng.standard_normal((2, cells.k))[:, cells.cell]
    z = cells.z + solution.scale * rng.standard_normal(cells.n)
    return replace(cells, x=cells.x + shift[0], y=cells.y + shift[1], z=z)


def jitter(prior: Prior, intercepts: Sequence[int], rng: np.random.Generator) -> Prior:
    """The prior's exponents drawn anew: what only the prior knows is as uncertain as the prior.

    Intercepts stay, unless a base knows them: otherwise their prior only keeps a flat bowl near its grid.
    """
    spread = np.where(prior.precision > 0, 1.0 / np.sqrt(np.maximum(prior.precision, 1e-12)), 0.0)
    if prior.curvature is None:
        spread[list(intercepts)] = 0.0
    value = prior.value + spread * rng.standard_normal(prior.value.size)
    return Prior(value, prior.precision, prior.curvature and _drawn(prior.curvature, rng))


def _drawn(prior: CurvaturePrior, rng: np.random.Generator) -> CurvaturePrior:
    """A curvature prior about a draw of itself, one that is still curved upwards."""
    root = np.linalg.cholesky(np.linalg.inv(prior.precision))
    value = prior.value + root @ rng.standard_normal(prior.value.size)
    positive = value[0] > LEAST_CURVATURE * prior.value[0]
    return replace(prior, value=value if positive else prior.value)


def bootstrap_weights(cells: Cells, rng: np.random.Generator) -> Array:
    """Bayesian bootstrap on three levels: sizes, cells within sizes, runs within cells (mean weight 1)."""
    _, size_index = np.unique(cells.size, return_inverse=True)
    # Gamma with shape 2 for sizes: three sizes with exponential weights would often leave one.
    size_weight = rng.gamma(2.0, 0.5, size_index.max() + 1)
    cell_weight = rng.gamma(1.0, 1.0, cells.k)
    weight = size_weight[size_index] * cell_weight[cells.cell] * rng.gamma(1.0, 1.0, cells.n)
    return np.asarray(weight * (cells.n / weight.sum()))


def small_sample(cells: Cells, axes: Axes) -> dict[str, float]:
    """Bootstrap intervals are too narrow by about √(k/(k − p)) over k clusters and p coefficients."""
    k, p = cells.k, 1 + len(axes.names)
    factor = math.sqrt(k / max(k - p, 0.5))
    return {"lr": factor, "batch": factor, "loss": factor}


def measure_scatter(cells: Cells, axes: Axes, surface: Surface) -> dict[str, float]:
    """Root mean square distance of cells' best runs from the law, optima at a grid's edge left out.

    Part is the grid's spacing, part noise on a flat bowl: a held-out cell's best run scatters alike.
    """
    x, y = surface.centre(axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra()))
    dx, dy, along = [], [], []
    for j in range(cells.k):
        grid = cell_grid(cells, j)
        edge_lr, edge_batch = grid.at_edge()
        if not edge_lr:
            u, v = math.log(grid.best_lr) - float(x[j]), math.log(grid.best_batch) - float(y[j])
            dx.append(u)
            along.append(u - surface.lr_given_batch(v))
        if surface.has_batch and not edge_batch:
            dy.append(math.log(grid.best_batch) - float(y[j]))

    def rms(values: list[float]) -> float:
        # three pseudo-cells at the published tables' 0.3 keep a few lucky cells from promising too much
        return math.sqrt((math.fsum(v * v for v in values) + 3 * USUAL_SCATTER**2) / (len(values) + 3))

    return {"lr": rms(dx), "batch": rms(dy) if surface.has_batch else 0.0, "lr_given_batch": rms(along)}


def measure_curvature(
    cells: Cells, axes: Axes, solution: Solution, slopes: Prior, level: float
) -> dict[str, Estimate]:
    """Second-order coefficients of ln lr* (and ln B*) in the axes' logarithms, jackknifed over cells' blocks.

    Only where an axis has at least three distinct values and the cells are more than the coefficients.
    """
    names = axes.scale_names
    columns = [1 + axes.names.index(n) for n in names]
    values = {"size": cells.cell_size, "tokens": cells.cell_tokens}
    pairs = [
        (f"{names[i]}²" if i == j else f"{names[i]}·{names[j]}", columns[i], columns[j])
        for i in range(len(names))
        for j in range(i, len(names))
        if i != j or np.unique(values[names[i]]).size >= 3
    ]
    p = len(axes.names) + 1
    if not pairs or cells.k < p + len(pairs) + SPARE_CELLS:
        return {}
    base = axes.design(cells.size, cells.tokens, cells.extra)
    design = np.column_stack([base, *(base[:, i] * base[:, j] for _, i, j in pairs)])
    s = solution.surface
    zeros = np.zeros(len(pairs))
    wide = np.full(len(pairs), 1.0 / CURVATURE_SPREAD**2)
    start = replace(s, a=np.r_[s.a, zeros], b=np.r_[s.b, zeros] if s.has_batch else s.b)
    halves = [(slopes.value[k : k + p], slopes.precision[k : k + p]) for k in range(0, slopes.value.size, p)]
    prior = Prior(
        np.concatenate([np.r_[v, zeros] for v, _ in halves]),
        np.concatenate([np.r_[q, wide] for _, q in halves]),
    )

    def coefficients(weight: Array | None) -> Array:
        return solve(
            cells, design, start, prior=prior, weight=weight, scale=solution.scale, iterations=12
        ).surface.a

    point = coefficients(None)
    groups = min(cells.k, 12)
    block = np.arange(cells.k) % groups
    left = np.array([coefficients((block[cells.cell] != g).astype(float)) for g in range(groups)])
    error = np.sqrt((groups - 1) / groups * ((left - left.mean(axis=0)) ** 2).sum(axis=0))
    z = float(stats.t.ppf(0.5 + 0.5 * level, groups - 1))
    return {
        name: Estimate(float(v), float(v - z * e), float(v + z * e))
        for (name, _, _), v, e in zip(pairs, point[p:], error[p:], strict=True)
    }


def curvature_cautions(curvature: dict[str, Estimate]) -> list[Caution]:
    out: list[Caution] = []
    for name, e in curvature.items():
        if 0.0 not in e and abs(e.value) > MIN_CURVATURE:
            message = (
                f"the optimal lr bends in log-log: coefficient of {name} is {e.value:+.3f} "
                f"({e.low:+.3f} to {e.high:+.3f}); extrapolating a power law far is less certain than its interval"
            )
            out.append(Caution("curvature", message))
    return out
