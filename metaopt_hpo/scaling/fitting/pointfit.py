"""The surface without intervals: where a fit starts, what it believes beforehand, and the fit in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from metaopt_hpo.scaling.base.population import AXES, Base
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.checks import batch_varies, check_bowl, choose_axes
from metaopt_hpo.scaling.fitting.oddities import exploded
from metaopt_hpo.scaling.fitting.solver import Prior, Solution, solve
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.bowl import CUBIC, Bowl
from metaopt_hpo.scaling.forms.offsets import BATCH_SPREAD, lr_offset
from metaopt_hpo.scaling.forms.surface import Array, Surface

EXTRA_SPREAD = 0.3
"""Prior standard deviation of an exponent in a further coordinate, which size often confounds."""

INTERCEPT_SPREAD = 1.5
"""Prior standard deviation, ln units, of an optimum about the best runs: keeps a flat bowl's centre near its grid."""

SLOPE_PRIOR = {"lr": {"size": -0.4, "tokens": 0.0}, "batch": {"size": 0.0, "tokens": 0.5}}
"""Prior mean of the exponents: the mean over published laws."""

SLOPE_SPREAD = {"lr": {"size": 0.4, "tokens": 0.4}, "batch": {"size": 0.4, "tokens": 0.3}}
"""Prior standard deviation of the exponents, that over published laws: it matters for tiny tables only."""


class Known(Protocol):
    """What a prior law says: its optimum's coefficients, and draws of them."""

    @property
    def axes(self) -> Axes: ...
    @property
    def surface(self) -> Surface: ...
    @property
    def draws(self) -> Draws: ...
    @property
    def widen(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class PointFit:
    """A fit without intervals: axes, surface, the robust scale of one run about it, each cell's floor (ln loss)."""

    axes: Axes
    surface: Surface
    scale: float
    floors: Array

    def centre(
        self, size: float, tokens: float, extra: Mapping[str, float] | None = None
    ) -> tuple[float, float]:
        """(ln lr*, ln B*)."""
        x, y = self.surface.centre(self.axes.design(size, tokens, extra))
        return float(x), float(y)


def point_fit(
    cells: Cells, prior: Known | None = None, base: Base | None = None, bowl: Bowl = CUBIC
) -> PointFit:
    """The optimum without intervals: milliseconds, for searches and validation.

    Args:
        cells: the trials.
        prior: a law whose exponents are believed within its intervals.
        base: a population of tables to which this one belongs; the trials then need show no minimum of their own.
        bowl: form of the loss about the optimum.

    Raises:
        LawRefused: the runs show no minimum.
    """
    axes, _ = choose_axes(cells, base)
    start = start_surface(cells, axes, batch_varies(cells, base), base, bowl)
    _, solution = solve_sound(cells, axes, start, slope_prior(axes, start, prior, base))
    check_bowl(solution.surface)
    return PointFit(axes, solution.surface, solution.scale, solution.floors)


def base_fit(base: Base) -> PointFit | None:
    """What a base says before any run: its own optimum and curvature; None where it knows no exponent or no batch."""
    known = [i for i, n in enumerate(AXES) if n in base.axes and math.isfinite(base.centre[i])]
    if not known:
        return None
    rows = [0, *(1 + i for i in known)]
    axes = Axes(tuple(AXES[i] for i in known), base.centre[known])
    b = np.nan_to_num(base.batch[rows])
    h = np.nan_to_num(base.curvature)
    surface = Surface(base.lr[rows], b, h[:3], float(h[3]), base.has_batch)
    return PointFit(axes, surface, base.noise, np.zeros(0))


def solve_sound(
    cells: Cells, axes: Axes, start: Surface, prior: Prior, *, iterations: int = 40
) -> tuple[Cells, Solution]:
    """(the cells without exploded runs, the surface fitted to them): a robust fit first shows which runs exploded.

    Left in, a few of them past an edge of stability would make the bowl look sharp.
    """

    def solved(runs: Cells, begin: Surface) -> Solution:
        design = axes.design(runs.size, runs.tokens, runs.extra)
        return solve(runs, design, begin, prior=prior, iterations=iterations)

    first = solved(cells, start if prior.curvature is None else _at_best_runs(cells, axes, start))
    bad = exploded(cells, axes, first.surface, first.floors, first.scale)
    if not bad.any() or first.surface.h[0] <= 0:
        return cells, first
    sound = cells.runs(~bad)
    return sound, solved(sound, first.surface)


def _at_best_runs(cells: Cells, axes: Axes, start: Surface) -> Surface:
    """`start` with its lr moved to the cells' best runs, in the middle of those of three runs or more.

    From a base's optimum far off the trials their losses rise to one side, which a fit would take for noise.
    """
    x, y = start.centre(axes.design(cells.size, cells.tokens, cells.extra))
    off = []
    for j in np.flatnonzero(np.bincount(cells.cell, minlength=cells.k) >= 3):
        runs = np.flatnonzero(cells.cell == j)
        best = runs[np.argmin(cells.z[runs])]
        off.append(float(cells.x[best] - x[best]) - start.lr_given_batch(float(cells.y[best] - y[best])))
    away = float(np.median(off)) if off else 0.0
    return replace(start, a=np.concatenate([[start.a[0] + away], start.a[1:]]))


def point_fitter(
    prior: Known | None, base: Base | None = None, bowl: Bowl = CUBIC
) -> Callable[[Cells], PointFit | None]:
    """`point_fit` for ordered validation: None where the cells cannot bear a fit."""

    def fit(cells: Cells) -> PointFit | None:
        try:
            return point_fit(cells, prior, base, bowl)
        except (LawRefused, np.linalg.LinAlgError):
            return None

    return fit


def start_surface(
    cells: Cells, axes: Axes, has_batch: bool, base: Base | None = None, bowl: Bowl = CUBIC
) -> Surface:
    """First guess: the base's optimum and curvature, or a ridge regression of each cell's best run."""
    own = _regressed(cells, axes, has_batch)
    if base is not None:
        return _base_surface(axes, has_batch, base, own)
    beyond = np.zeros(len(bowl.names) - 3)
    return Surface.of(own.a, own.b, np.concatenate([own.h, beyond]), bowl, has_batch=has_batch)


def _base_surface(axes: Axes, has_batch: bool, base: Base, own: Surface) -> Surface:
    """What the base says, filled up with the trials' own where it says nothing."""
    coefficients = []
    for key, values in (("lr", own.a), ("batch", own.b)):
        mean, _ = base.at(key, scale_centre(axes, base))
        filled = values.copy()
        if math.isfinite(mean[0]):
            filled[0] = mean[0]
            for name, slope in zip(AXES, mean[1:], strict=True):
                if name in axes.names and math.isfinite(slope):
                    filled[1 + axes.names.index(name)] = slope
        coefficients.append(filled)
    h = np.where(np.isfinite(base.curvature), base.curvature, [*own.h, own.skew])
    return Surface(coefficients[0], coefficients[1], h[:3], float(h[3]), has_batch)


def scale_centre(axes: Axes, base: Base) -> Array:
    """(ln size, ln tokens) at which the intercepts of `axes` are read; the base's own along an axis they lack."""
    own = dict(zip(axes.names, axes.centre, strict=True))
    return np.array([own.get(n, c) for n, c in zip(AXES, base.centre, strict=True)], dtype=float)


def _regressed(cells: Cells, axes: Axes, has_batch: bool) -> Surface:
    best = np.array(
        [np.flatnonzero(cells.cell == j)[np.argmin(cells.z[cells.cell == j])] for j in range(cells.k)]
    )
    design = axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra())
    ridge = np.diag([1e-9] + [0.3] * len(axes.names))
    gram = design.T @ design + ridge

    def regress(values: Array, key: str) -> Array:
        mean = np.array([0.0] + [_usual(axes, key, n)[0] for n in axes.names])
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


def slope_prior(axes: Axes, start: Surface, prior: Known | None, base: Base | None = None) -> Prior:
    """Gaussian prior on the centre's coefficients: weak, tighter where a prior law or a base knows them."""
    value: list[float] = []
    precision: list[float] = []
    for key, used in (("lr", True), ("batch", start.has_batch)):
        if not used:
            continue
        known = _base_slopes(axes, key, base)
        value.append(float((start.a if key == "lr" else start.b)[0]))
        precision.append(1.0 / known.get("", (0.0, INTERCEPT_SPREAD))[1] ** 2)
        for name in axes.names:
            if name in known:
                value.append(known[name][0])
                precision.append(1.0 / known[name][1] ** 2)
                continue
            mean, spread = _usual(axes, key, name)
            if prior is not None and name in prior.axes.names and (key == "lr" or prior.surface.has_batch):
                i = 1 + prior.axes.names.index(name)
                mean = float((prior.surface.a if key == "lr" else prior.surface.b)[i])
                own = (prior.draws.a if key == "lr" else prior.draws.b)[:, i]
                spread = max(float(own.std()) * prior.widen[key], 0.02)
            value.append(mean)
            precision.append(1.0 / spread**2)
    curvature = None
    if base is not None:
        curvature = base.curvature_prior(scale_centre(axes, base), batch=start.has_batch)
    return Prior(np.array(value), np.array(precision), curvature)


def _usual(axes: Axes, key: str, name: str) -> tuple[float, float]:
    """(mean, standard deviation) of a coefficient of ln lr* or ln batch* over published laws."""
    setting, _, level = name.partition("=")
    if not level:
        return SLOPE_PRIOR[key].get(name, 0.0), SLOPE_SPREAD[key].get(name, EXTRA_SPREAD)
    return lr_offset(setting, level, axes.levels[setting][0]) if key == "lr" else (0.0, BATCH_SPREAD)


def _base_slopes(axes: Axes, key: str, base: Base | None) -> dict[str, tuple[float, float]]:
    """(mean, standard deviation) of what the base knows, by axis; the intercept's under the empty name."""
    if base is None:
        return {}
    mean, spread = base.at(key, scale_centre(axes, base))
    return {
        name: (float(m), float(s))
        for name, m, s in zip(("", *AXES), mean, spread, strict=True)
        if math.isfinite(m)
    }
