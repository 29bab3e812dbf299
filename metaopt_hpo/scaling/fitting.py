"""fit(table) → Law: robust surface, bootstrap intervals, and refusal where the data cannot bear a law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from metaopt_hpo.scaling.cells import Cells, Use, from_table
from metaopt_hpo.scaling.estimates import Caution, Estimate, LawRefused
from metaopt_hpo.scaling.floor import Floor, fit_floor
from metaopt_hpo.scaling.law import Domain, Draws, Law
from metaopt_hpo.scaling.ordered import Centre, cell_grid, loss_rate, measure_trust
from metaopt_hpo.scaling.solver import Prior, Solution, solve
from metaopt_hpo.scaling.surface import Array, Axes, Surface, coordinate

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable

MIN_SIZES = 3
MIN_TRIALS = 6
COLLINEAR = 0.98
"""Squared correlation of ln size and ln tokens above which their effects cannot be told apart."""

EXTRA_SPREAD = 0.3
"""Prior standard deviation of an exponent in a further coordinate, which size often confounds."""

CURVATURE_SPREAD = 0.1
MIN_CURVATURE = 0.01
"""Prior on second-order coefficients, and the least that is worth a caution (5 % of lr at nine e-folds²)."""

USUAL_SCATTER = 0.3
"""Distance (ln units) of a cell's best run from the law in the tables here."""

FAR_OUTSIDE = 1.0
"""ln units beyond a cell's batches from which its optimal batch counts as not seen."""

STEEPEST_VALLEY = 3.0
"""Bound on d ln lr* / d ln B in a draw: theory and tables have 0.5 to 1, a bowl that a draw left flat has anything."""

INTERCEPT_SPREAD = 1.5
"""Prior standard deviation, ln units, of an optimum about the best runs: keeps a flat bowl's centre near its grid."""

SLOPE_PRIOR = {"lr": {"size": -0.4, "tokens": 0.0}, "batch": {"size": 0.0, "tokens": 0.5}}
SLOPE_SPREAD = {"lr": {"size": 0.4, "tokens": 0.4}, "batch": {"size": 0.4, "tokens": 0.3}}
"""Weak prior on the exponents (mean and standard deviation over published laws): matters for tiny tables only."""


def fit(
    table: TrialTable,
    *,
    allow_weak: bool = False,
    prior: Law | None = None,
    use: Use = "fixed",
    strategy: str | None = None,
    extra: Sequence[str] = (),
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """Fit one law to all trials of a table.

    Args:
        table: trials of at least three sizes, each with at least three lr in some cells.
        allow_weak: fit even from two sizes, or from optima that all lie at the grid's edge; the law then
            carries a caution instead.
        prior: a law whose exponents are believed within its intervals; it lifts the same refusals.
        use: which trials' lr counts: "fixed" (schedules set from outside), "plateau" (adaptive strategies at
            the step size they settled on), "all".
        strategy: only trials of this strategy.
        extra: hyperparameters that are further coordinates of the optimum (weight_decay, beta2, width, …).
        draws: bootstrap draws (hierarchical: sizes, cells, runs).
        level: coverage of intervals.
        seed: of the bootstrap.

    Raises:
        LawRefused: with `.code` and `.reason`.
    """
    if draws < 20:
        raise ValueError(f"draws must be at least 20, got {draws!r}")
    if not 0.5 <= level < 1:
        raise ValueError(f"level must be in [0.5, 1), got {level!r}")
    cells = from_table(table, use=use, strategy=strategy, extra=extra)
    try:
        law = fit_cells(cells, allow_weak=allow_weak, prior=prior, draws=draws, level=level, seed=seed)
    except np.linalg.LinAlgError as e:
        reason = "the trials leave the surface undetermined: vary lr, and batch if its optimum is wanted, in more cells"
        raise LawRefused("no-minimum", reason) from e
    options = {"use": use, "strategy": strategy, "extra": list(extra)}
    return replace(law, settings=law.settings | options)


REFIT_GROWTH = 1.05
"""`refit` fits anew, bootstrap included, once the trials have grown by this factor since it last did."""


def refit(law: Law, table: TrialTable) -> Law:
    """`law` after some trials more, keeping its bootstrap: the draws move with the point estimate.

    The spread of draws hardly changes with one trial in hundreds; it is drawn anew when the table has grown by
    5 %, when the table's axes changed, or when the law is a small one (under 50 trials).

    Args:
        law: from `fit`; a prior given to it then lives on in the draws' centre only.
        table: all trials, old and new.
    """
    o = law.settings
    cells = from_table(table, use=o["use"], strategy=o["strategy"], extra=o["extra"])
    axes, path = choose_axes(cells)
    has_batch = _batch_varies(cells)
    grown = cells.n > REFIT_GROWTH * o["trials"] or cells.n < 50
    if grown or axes.names != law.axes.names or has_batch != law.surface.has_batch:
        return replace(
            fit_cells(
                cells, allow_weak=o["allow_weak"], draws=len(law.draws.a), level=law.level, seed=o["seed"]
            ),
            settings=o | {"trials": cells.n},
        )
    axes = law.axes  # the centre stays, so that old draws mean what they meant
    design = axes.design(cells.size, cells.tokens, cells.extra)
    solution = solve(cells, design, law.surface, prior=slope_prior(axes, law.surface, None), iterations=24)
    _check_bowl(solution.surface)
    per_cell = np.bincount(cells.cell, minlength=cells.k).astype(float)
    floor = fit_floor(
        law.floor.names,
        np.log(cells.cell_size),
        np.log(cells.cell_tokens),
        solution.floors,
        np.minimum(per_cell, 10.0) / 10.0,
        start=law.floor,
        noise=solution.scale,
    )
    draws = Draws(
        law.draws.a + (solution.surface.a - law.surface.a),
        law.draws.b + (solution.surface.b - law.surface.b),
        law.draws.slope,
        _recentre(law.draws.floor, law.floor, floor),
    )
    return replace(
        law,
        surface=solution.surface,
        floor=floor,
        draws=draws,
        domain=_domain(cells),
        noise=max(solution.scale, 1e-6),
        cells={
            "size": cells.cell_size,
            "tokens": cells.cell_tokens,
            "log_loss": solution.floors,
            "trials": per_cell,
        },
        trials=cells.n,
        path=path,
        _cache={},
    )


def _recentre(draws: Array, old: Floor, new: Floor) -> Array:
    """Floor draws about another centre, moved so that their middle is the new fit."""
    k = len(old.names)
    out = draws.copy()
    out[:, 1 : 1 + k] *= np.exp(-draws[:, 1 + k :] * (new.centre - old.centre))
    was = old.coefficient * np.exp(-old.exponent * (new.centre - old.centre))
    out[:, 0] += new.level - old.level
    out[:, 1 : 1 + k] += new.coefficient - was
    out[:, 1 + k :] += new.exponent - old.exponent
    return out


def fit_cells(
    cells: Cells,
    *,
    allow_weak: bool = False,
    prior: Law | None = None,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """`fit` from arrays."""
    cautions = list(cells.cautions)
    axes, path = choose_axes(cells)
    has_batch = _batch_varies(cells)
    cautions += _refusals(cells, weak=allow_weak or prior is not None)
    cautions += _axis_cautions(cells, axes, path, has_batch)
    design = axes.design(cells.size, cells.tokens, cells.extra)
    start = start_surface(cells, axes, has_batch)
    slopes = slope_prior(axes, start, prior)
    solution = solve(cells, design, start, prior=slopes)
    _check_bowl(solution.surface)
    open_valley = _open_valley(cells, axes, solution.surface)
    cautions += [OPEN_VALLEY] if open_valley else []
    per_cell = np.bincount(cells.cell, minlength=cells.k).astype(float)
    cell_weight = np.minimum(per_cell, 10.0) / 10.0
    names = axes.scale_names or ("size",)
    ln_size, ln_tokens = np.log(cells.cell_size), np.log(cells.cell_tokens)
    floor = fit_floor(names, ln_size, ln_tokens, solution.floors, cell_weight, noise=solution.scale)
    rng = np.random.default_rng(seed)
    result = _bootstrap(cells, design, solution, slopes, floor, per_cell, rng, draws)
    curvature = measure_curvature(cells, axes, solution, slopes, level)
    cautions += _exponent_cautions(axes, result, has_batch)
    cautions += _curvature_cautions(curvature)
    trust = {n: measure_trust(cells, n, _centre_fitter(prior)) for n in axes.scale_names}
    return Law(
        axes=axes,
        surface=solution.surface,
        floor=floor,
        draws=result,
        domain=_domain(cells),
        noise=max(solution.scale, 1e-6),
        cells={
            "size": cells.cell_size,
            "tokens": cells.cell_tokens,
            "log_loss": solution.floors,
            "trials": per_cell,
        },
        trials=cells.n,
        level=level,
        widen=_small_sample(cells, axes),
        scatter=_scatter(cells, axes, solution.surface),
        loss_rate=loss_rate(names, cells, solution.floors, cell_weight, solution.scale),
        trust=trust,
        curvature=curvature,
        warnings=tuple(cautions),
        open_valley=open_valley,
        settings={"allow_weak": allow_weak or prior is not None, "seed": seed, "trials": cells.n},
        path=path,
    )


def _bootstrap(
    cells: Cells,
    design: Array,
    solution: Solution,
    slopes: Prior,
    floor: Floor,
    per_cell: Array,
    rng: np.random.Generator,
    draws: int,
) -> Draws:
    """Parameters fitted to reweighted sizes, cells and runs; floors are re-expressed about one centre."""
    a, b, valley, floors = [], [], [], []
    ln_size, ln_tokens = np.log(cells.cell_size), np.log(cells.cell_tokens)
    for _ in range(draws):
        weight = bootstrap_weights(cells, rng)
        s = solve(
            cells,
            design,
            solution.surface,
            weight=weight,
            prior=_jitter(slopes, range(0, slopes.value.size, design.shape[1]), rng),
            scale=solution.scale,
            iterations=6,
        )
        share = np.bincount(cells.cell, weight, minlength=cells.k) / np.maximum(per_cell, 1.0)
        f = fit_floor(
            floor.names,
            ln_size,
            ln_tokens,
            s.floors,
            np.minimum(per_cell, 10.0) / 10.0 * share,
            start=floor,
            noise=s.scale,
        )
        shift = np.exp(f.exponent * (f.centre - floor.centre))
        a.append(s.surface.a)
        b.append(s.surface.b)
        slope = -float(s.surface.h[1]) / max(float(s.surface.h[0]), 1e-3 * float(solution.surface.h[0]))
        valley.append(min(max(slope, -STEEPEST_VALLEY), STEEPEST_VALLEY))
        floors.append(np.concatenate([[f.level], f.coefficient * shift, f.exponent]))
    return Draws(np.array(a), np.array(b), np.array(valley), np.array(floors))


@dataclass(frozen=True)
class PointFit:
    """A fit without intervals: axes, surface and the robust scale of one run about it (ln loss)."""

    axes: Axes
    surface: Surface
    scale: float

    def centre(self, size: float, tokens: float) -> tuple[float, float]:
        """(ln lr*, ln B*)."""
        x, y = self.surface.centre(self.axes.design(size, tokens))
        return float(x), float(y)


def point_fit(cells: Cells, prior: Law | None = None) -> PointFit:
    """The optimum without intervals: milliseconds, for searches and validation.

    Raises:
        LawRefused: the runs show no minimum.
    """
    axes, _ = choose_axes(cells)
    start = start_surface(cells, axes, _batch_varies(cells))
    design = axes.design(cells.size, cells.tokens, cells.extra)
    solution = solve(cells, design, start, prior=slope_prior(axes, start, prior))
    _check_bowl(solution.surface)
    return PointFit(axes, solution.surface, solution.scale)


def _centre_fitter(prior: Law | None) -> Callable[[Cells], Centre | None]:
    """`point_fit` for ordered validation: None where the cells cannot bear a fit."""

    def fit_centre(cells: Cells) -> Centre | None:
        try:
            return point_fit(cells, prior).centre
        except (LawRefused, np.linalg.LinAlgError):
            return None

    return fit_centre


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
    if not pairs or cells.k < 2 * (p + len(pairs)):
        return {}
    base = axes.design(cells.size, cells.tokens, cells.extra)
    design = np.column_stack([base, *(base[:, i] * base[:, j] for _, i, j in pairs)])
    s = solution.surface
    zeros = np.zeros(len(pairs))
    wide = np.full(len(pairs), 1.0 / CURVATURE_SPREAD**2)
    start = Surface(np.r_[s.a, zeros], np.r_[s.b, zeros] if s.has_batch else s.b, s.h, s.skew, s.has_batch)
    halves = [(slopes.value[k : k + p], slopes.precision[k : k + p]) for k in range(0, slopes.value.size, p)]
    prior = Prior(
        np.concatenate([np.r_[v, zeros] for v, _ in halves]),
        np.concatenate([np.r_[q, wide] for _, q in halves]),
    )

    def coefficients(weight: Array | None) -> Array:
        return solve(
            cells, design, start, prior=prior, weight=weight, scale=solution.scale, iterations=12
        ).surface.a[p:]

    point = coefficients(None)
    groups = min(cells.k, 12)
    block = np.arange(cells.k) % groups
    left = np.array([coefficients((block[cells.cell] != g).astype(float)) for g in range(groups)])
    error = np.sqrt((groups - 1) / groups * ((left - left.mean(axis=0)) ** 2).sum(axis=0))
    z = float(stats.t.ppf(0.5 + 0.5 * level, groups - 1))
    return {
        name: Estimate(float(v), float(v - z * e), float(v + z * e))
        for (name, _, _), v, e in zip(pairs, point, error, strict=True)
    }


def _curvature_cautions(curvature: dict[str, Estimate]) -> list[Caution]:
    out: list[Caution] = []
    for name, e in curvature.items():
        if 0.0 not in e and abs(e.value) > MIN_CURVATURE:
            message = (
                f"the optimal lr bends in log-log: coefficient of {name} is {e.value:+.3f} "
                f"({e.low:+.3f} to {e.high:+.3f}); extrapolating a power law far is less certain than its interval"
            )
            out.append(Caution("curvature", message))
    return out


def _scatter(cells: Cells, axes: Axes, surface: Surface) -> dict[str, float]:
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


def choose_axes(cells: Cells) -> tuple[Axes, tuple[float, float] | None]:
    """The axes that the cells can tell apart, and the path tokens = c·size^k where they cannot."""
    n, d = np.log(cells.cell_size), np.log(cells.cell_tokens)
    moves_n, moves_d = np.ptp(n) > 0.05, np.ptp(d) > 0.05
    if moves_n and moves_d:
        if np.corrcoef(n, d)[0, 1] ** 2 > COLLINEAR:
            slope = float(np.cov(n, d)[0, 1] / n.var(ddof=1))
            path = (float(d.mean() - slope * n.mean()), slope)
            return _axes(cells, {"size": n}), path
        return _axes(cells, {"size": n, "tokens": d}), None
    if moves_n:
        return _axes(cells, {"size": n}), None
    return _axes(cells, {"tokens": d} if moves_d else {}), None


def _axes(cells: Cells, scale: dict[str, Array]) -> Axes:
    """Axes with the further coordinates that vary; they default to what the largest cells used."""
    values = dict(scale)
    defaults: dict[str, float] = {}
    largest = cells.cell_size * cells.cell_tokens
    for name, v in cells.cell_extra().items():
        defaults[name] = float(v[np.argmax(largest)])
        t = coordinate(name, v)
        if np.ptp(t) > 1e-6:
            values[name] = t
    return Axes(tuple(values), np.array([float(v.mean()) for v in values.values()]), defaults)


def _batch_varies(cells: Cells) -> bool:
    """Three batches in some cell identify a batch optimum."""
    return max(np.unique(np.round(cells.y[cells.cell == j], 6)).size for j in range(cells.k)) >= 3


def _lr_levels(cells: Cells, j: int) -> Array:
    return np.unique(np.round(cells.x[cells.cell == j], 6))


def edge_side(cells: Cells, j: int) -> int:
    """−1 or +1 where the cell's best run has the lowest or highest lr of its cell, else 0."""
    rows = np.flatnonzero(cells.cell == j)
    levels = _lr_levels(cells, j)
    if levels.size < 2:
        return 0
    best = cells.x[rows[np.argmin(cells.z[rows])]]
    return -1 if best <= levels[0] + 1e-6 else (1 if best >= levels[-1] - 1e-6 else 0)


def _refusals(cells: Cells, *, weak: bool) -> list[Caution]:
    levels = [_lr_levels(cells, j).size for j in range(cells.k)]
    if max(levels) < 2:
        raise LawRefused("one-lr", "every cell holds a single lr: vary lr at each size to locate its optimum")
    if max(levels) < 3:
        raise LawRefused("one-lr", "no cell holds three different lr, so the bowl's shape cannot be seen")
    if cells.n < MIN_TRIALS:
        raise LawRefused(
            "few-trials", f"{cells.n} usable trials are too few for a law (at least {MIN_TRIALS})"
        )
    out: list[Caution] = []
    sizes = np.unique(cells.cell_size).size
    if sizes < MIN_SIZES:
        reason = (
            f"{sizes} size{'s' if sizes > 1 else ''} cannot show a law across sizes (at least {MIN_SIZES}): run a "
            "smaller model, pass allow_weak=True, or give a prior law"
        )
        if not weak:
            raise LawRefused("few-sizes", reason)
        out.append(Caution("few-sizes", f"the law rests on {sizes} size{'s' if sizes > 1 else ''} only"))
    sides = [edge_side(cells, j) for j in range(cells.k) if levels[j] >= 3]
    for side, word in ((-1, "lowest"), (1, "highest")):
        if sides and all(s == side for s in sides):
            reason = f"every cell's best run has the {word} lr of its grid: extend the grid, the optimum lies outside"
            if not weak:
                raise LawRefused("edge", reason)
            out.append(Caution("edge", reason))
    at_edge = sum(s != 0 for s in sides)
    if at_edge and not any(c.code == "edge" for c in out):
        message = (
            f"{at_edge} of {len(sides)} cells have their best run at the grid's edge; they count as censored"
        )
        out.append(Caution("some-edges", message))
    return out


def _axis_cautions(
    cells: Cells, axes: Axes, path: tuple[float, float] | None, has_batch: bool
) -> list[Caution]:
    out: list[Caution] = []
    if not has_batch:
        batches = np.unique(np.round(np.exp(cells.y)))
        what = (
            f"a single batch ({batches[0]:.4g})"
            if batches.size == 1
            else "no batch varied at a fixed size and tokens"
        )
        out.append(
            Caution(
                "batch-not-identified", f"the table holds {what}: no batch law, the batch used is given back"
            )
        )
    if path is not None:
        out.append(
            Caution(
                "tokens-follow-size",
                f"tokens grew as size^{path[1]:.3g} in every trial: only that path is known",
            )
        )
    elif "tokens" not in axes.names and axes.names:
        out.append(
            Caution("tokens-fixed", "all trials saw the same number of tokens: nothing is known of others")
        )
    return out


def _check_bowl(s: Surface) -> None:
    if s.h[0] <= 0:
        raise LawRefused("no-minimum", "the losses show no minimum in lr: widen the grid or add seeds")


def _open_valley(cells: Cells, axes: Axes, s: Surface) -> bool:
    """Whether the batch has no minimum, or has it far outside what most cells tried."""
    if not s.has_batch or s.open:
        return s.open
    _, y = s.centre(axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra()))
    low, high = np.full(cells.k, np.inf), np.full(cells.k, -np.inf)
    np.minimum.at(low, cells.cell, cells.y)
    np.maximum.at(high, cells.cell, cells.y)
    outside = np.maximum(np.maximum(y - high, low - y), 0.0)
    return bool(np.median(outside) > FAR_OUTSIDE)


OPEN_VALLEY = Caution(
    "open-valley",
    "lr and batch trade off along a valley without an end in the table: the best lr at a given batch is known, "
    "the best batch is not (widen the range of batches)",
)


def start_surface(cells: Cells, axes: Axes, has_batch: bool) -> Surface:
    """First guess: ridge regression of each cell's best run."""
    best = np.array(
        [np.flatnonzero(cells.cell == j)[np.argmin(cells.z[cells.cell == j])] for j in range(cells.k)]
    )
    design = axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra())
    ridge = np.diag([1e-9] + [0.3] * len(axes.names))
    gram = design.T @ design + ridge

    def regress(values: Array, key: str) -> Array:
        mean = np.array([0.0] + [SLOPE_PRIOR[key].get(n, 0.0) for n in axes.names])
        return np.asarray(np.linalg.solve(gram, design.T @ values + ridge @ mean))

    a = regress(cells.x[best], "lr")
    if has_batch:
        b = regress(cells.y[best], "batch")
    else:
        mean = np.bincount(cells.cell, cells.y, minlength=cells.k) / np.bincount(
            cells.cell, minlength=cells.k
        )
        b = np.asarray(np.linalg.lstsq(design, mean, rcond=None)[0])
    return Surface(a, b, np.array([0.02, 0.0, 0.02]), 0.0, has_batch)


def slope_prior(axes: Axes, start: Surface, prior: Law | None) -> Prior:
    """Weak Gaussian prior on the centre's coefficients; tighter where a prior law knows the exponent."""
    value: list[float] = []
    precision: list[float] = []
    for key, used in (("lr", True), ("batch", start.has_batch)):
        if not used:
            continue
        value.append(float((start.a if key == "lr" else start.b)[0]))
        precision.append(1.0 / INTERCEPT_SPREAD**2)
        for name in axes.names:
            mean, spread = SLOPE_PRIOR[key].get(name, 0.0), SLOPE_SPREAD[key].get(name, EXTRA_SPREAD)
            if prior is not None and name in prior.axes.names and (key == "lr" or prior.surface.has_batch):
                i = 1 + prior.axes.names.index(name)
                mean = float((prior.surface.a if key == "lr" else prior.surface.b)[i])
                own = (prior.draws.a if key == "lr" else prior.draws.b)[:, i]
                spread = max(float(own.std()) * prior.widen[key], 0.02)
            value.append(mean)
            precision.append(1.0 / spread**2)
    return Prior(np.array(value), np.array(precision))


def _jitter(prior: Prior, intercepts: Sequence[int], rng: np.random.Generator) -> Prior:
    """The prior's exponents drawn anew: what only the prior knows is as uncertain as the prior.

    Intercepts stay: their prior only keeps a flat bowl near its grid.
    """
    spread = np.where(prior.precision > 0, 1.0 / np.sqrt(np.maximum(prior.precision, 1e-12)), 0.0)
    spread[list(intercepts)] = 0.0
    return Prior(prior.value + spread * rng.standard_normal(prior.value.size), prior.precision)


def bootstrap_weights(cells: Cells, rng: np.random.Generator) -> Array:
    """Bayesian bootstrap on three levels: sizes, cells within sizes, runs within cells (mean weight 1)."""
    _, size_index = np.unique(cells.size, return_inverse=True)
    # Gamma with shape 2 for sizes: three sizes with exponential weights would often leave one.
    size_weight = rng.gamma(2.0, 0.5, size_index.max() + 1)
    cell_weight = rng.gamma(1.0, 1.0, cells.k)
    weight = size_weight[size_index] * cell_weight[cells.cell] * rng.gamma(1.0, 1.0, cells.n)
    return np.asarray(weight * (cells.n / weight.sum()))


def _small_sample(cells: Cells, axes: Axes) -> dict[str, float]:
    """Bootstrap intervals are too narrow by about √(k/(k − p)) over k clusters and p coefficients."""
    k, p = cells.k, 1 + len(axes.names)
    factor = math.sqrt(k / max(k - p, 0.5))
    return {"lr": factor, "batch": factor, "loss": factor}


def _exponent_cautions(axes: Axes, draws: Draws, has_batch: bool) -> list[Caution]:
    out: list[Caution] = []
    for label, d, used in (("lr", draws.a, True), ("batch", draws.b, has_batch)):
        for i, name in enumerate(axes.names, start=1):
            if used:
                low, high = np.quantile(d[:, i], [0.05, 0.95])
                if low < 0 < high:
                    message = (
                        f"the exponent of {label} in {name} may have either sign ({low:.2f} to {high:.2f})"
                    )
                    out.append(Caution(f"exponent-{label}-{name}", message))
    return out


def _domain(cells: Cells) -> Domain:
    def span(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    return Domain(
        span(cells.size),
        span(cells.tokens),
        span(np.exp(cells.y)),
        span(np.exp(cells.x)),
        tuple(float(v) for v in np.unique(cells.cell_size)),
    )
