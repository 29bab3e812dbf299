"""How wrong a straight law may be: other shapes that the trials leave open, weighed by how well they explain the cells.

A law is a straight line in ln size and ln tokens, for predicting by anything bent is worse on real tables. What the
line may cost at a target is another question. Each cell's runs say where its own optimum lies, and how surely; these
optima are explained by the line alone, or with a bend, a kink or a step along one axis, about which they scatter. Each
shape has a prior, its evidence is exact (a linear Gaussian model), and draws of the mixture, read at a target, say how
far from the law the optimum may be there (model uncertainty, Draper 1995).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.solver import Prior, Solution, nearness
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.surface import Array

SCATTERS = (0.01, 0.03, 0.07, 0.15, 0.3, 0.6)
"""Standard deviations of cells' optima about their law, ln units: tables measured so far have 0.03 to 0.15."""

SCATTER_ODDS = (0.1, 0.2, 0.25, 0.25, 0.15, 0.05)
"""How likely each is beforehand."""

SHAPE_ODDS = {"bend": 0.1, "kink": 0.1, "step": 0.1}
"""How likely each shape is beforehand, shared among the places where it may be; the rest is the straight line's."""

SHAPE_SPREAD = {"bend": 0.1, "kink": 0.4, "step": 0.7}
"""Standard deviation of a bend's coefficient (ln lr by the square of an axis), of a kink's change of exponent, of a
step's height in ln units."""

PLACES = 8
"""Kinks, and steps, considered along one axis: more lie too close to be told apart."""

DRAWS = 300
"""Draws of the mixture: one in twenty is known to a hundredth."""


@dataclass(frozen=True)
class Shape:
    """A departure from the straight law along an axis.

    Attributes:
        kind: "bend", "kink" or "step".
        axis: column of the law's design.
        place: where it lies, in the units of the design.
    """

    kind: str
    axis: int
    place: float = 0.0

    def of(self, design: Array) -> Array:
        """One value a row of the law's design."""
        t = design[..., self.axis] - self.place
        if self.kind == "bend":
            return np.asarray(t * t)
        return np.asarray(np.maximum(t, 0.0) if self.kind == "kink" else (t > 0).astype(float))


@dataclass(frozen=True)
class Alternatives:
    """Draws of how far the true optimum lies from the straight law's.

    Attributes:
        shapes: the departures considered.
        lr, batch: (draws × (design + shapes)) coefficients of the distance in ln lr and in ln batch.
    """

    shapes: tuple[Shape, ...]
    lr: Array
    batch: Array

    def distances(self, design: Array) -> tuple[Array, Array]:
        """Draws of (ln lr*, ln B*) less the straight line's, at one row of the law's design."""
        row = np.concatenate([design, [float(s.of(design)) for s in self.shapes]])
        return self.lr @ row, self.batch @ row

    @property
    def bent(self) -> Array:
        """Which draws have a shape beside the line."""
        width = self.lr.shape[1] - len(self.shapes)
        return np.asarray((self.lr[:, width:] != 0).any(axis=1) | (self.batch[:, width:] != 0).any(axis=1))


def weigh(
    cells: Cells, axes: Axes, solution: Solution, prior: Prior, *, tied: bool, seed: int
) -> Alternatives:
    """The shapes that the cells leave open, as draws of their mixture.

    Args:
        cells, axes, solution, prior: of the straight fit.
        tied: whether tokens follow size, so that only a departure along both together can be seen.
        seed: of the draws.
    """
    design = axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra())
    names = axes.scale_names[:1] if tied else axes.scale_names
    shapes = [s for name in names for s in _shapes(design, 1 + axes.names.index(name))]
    features = np.column_stack([design, *(s.of(design) for s in shapes)])
    width, targets = design.shape[1], 2 if solution.surface.has_batch else 1
    centre = np.stack([solution.surface.a, solution.surface.b])[:targets]
    known = _Known(
        prior.value.reshape(targets, width) - centre,
        prior.precision.reshape(targets, width),
        own_optima(cells, axes, solution),
    )
    shared = {k: sum(s.kind == k for s in shapes) for k in SHAPE_ODDS}
    odds = [1.0 - sum(SHAPE_ODDS[k] for k, n in shared.items() if n)]
    odds += [SHAPE_ODDS[s.kind] / shared[s.kind] for s in shapes]
    models = []
    for scatter, likely in zip(SCATTERS, SCATTER_ODDS, strict=True):
        at = known.seen(scatter, targets)
        for m, share in enumerate(odds):
            columns = [*range(width), *([width + m - 1] if m else [])]
            spread = SHAPE_SPREAD[shapes[m - 1].kind] if m else None
            models.append(_Model(math.log(likely * share), columns, features[:, columns], spread, known, at))
    return _drawn(models, tuple(shapes), targets, features.shape[1], np.random.default_rng(seed))


def _shapes(design: Array, axis: int) -> list[Shape]:
    """Those that an axis of at least three values can show: one bend, kinks at inner values, steps between values."""
    values = np.unique(design[:, axis])
    if values.size < 3:
        return []
    inner, between = values[1:-1], 0.5 * (values[1:] + values[:-1])
    return [
        Shape("bend", axis),
        *(Shape("kink", axis, float(v)) for v in _some(inner)),
        *(Shape("step", axis, float(v)) for v in _some(between)),
    ]


def _some(values: Array) -> Array:
    """At most `PLACES` of them, evenly, the last (nearest to a target) always."""
    if values.size <= PLACES:
        return values
    return np.asarray(values[np.unique(np.linspace(0, values.size - 1, PLACES).round().astype(int))])


def own_optima(cells: Cells, axes: Axes, solution: Solution) -> tuple[Array, Array]:
    """What each cell says of its own optimum: information (cells × 2 × 2) and its product with the distance.

    A cell's runs are the law's bowl about a centre of its own; the distance of that from the law's enters linearly. The
    fit's weights fall with excess, so that they understate what a run is worth where noise does not grow with it: the
    information is scaled by what the weighted residuals really scatter (a sandwich estimate, one factor for all).
    """
    s = solution.surface
    x, y = s.centre(axes.design(cells.size, cells.tokens, cells.extra))
    across, along = s.slopes(cells.x - x, cells.y - y)
    w = nearness(cells, solution.scale) / solution.scale**2
    w = w / np.sqrt(1.0 + (solution.residual / (1.5 * solution.scale)) ** 2)
    total = np.maximum(np.bincount(cells.cell, w, minlength=cells.k), 1e-300)

    def demeaned(values: Array) -> Array:
        mean = np.bincount(cells.cell, w * values, minlength=cells.k) / total
        return np.asarray(values - mean[cells.cell])

    rows = [demeaned(-across), demeaned(-along)]
    rest = demeaned(solution.residual)
    steep = rows[0] ** 2 + rows[1] ** 2
    left = max(cells.n - 3 * cells.k, 0.25 * cells.n)
    real = float((w * w * rest * rest * steep).sum()) * cells.n / left
    factor = min(max(real / max(float((w * steep).sum()), 1e-300), 0.01), 100.0)
    information, pull = np.zeros((cells.k, 2, 2)), np.zeros((cells.k, 2))
    for i, j in itertools.product(range(2), range(2)):
        information[:, i, j] = np.bincount(cells.cell, w * rows[i] * rows[j], minlength=cells.k)
        pull[:, i] = np.bincount(cells.cell, w * rows[i] * rest, minlength=cells.k)
    return information / factor, pull / factor


@dataclass(frozen=True)
class _Seen:
    """Cells' information on the law once they scatter about it, its pull, and the evidence of that scatter."""

    information: Array
    pull: Array
    evidence: float


@dataclass(frozen=True)
class _Known:
    """Prior on the line's coefficients, as distances from the fitted ones, and what cells say of their optima."""

    mean: Array
    precision: Array
    optima: tuple[Array, Array]

    def seen(self, scatter: float, targets: int) -> _Seen:
        information, pull = (v[:, :targets] for v in self.optima)
        information = information[:, :, :targets]
        blurred = np.eye(targets) + scatter**2 * information
        inverse = np.linalg.inv(blurred)
        softened = np.einsum("kij,kj->ki", inverse, pull)
        evidence = -0.5 * float(np.linalg.slogdet(blurred)[1].sum())
        evidence += 0.5 * scatter**2 * float((pull * softened).sum())
        return _Seen(np.einsum("kij,kjl->kil", inverse, information), softened, evidence)


class _Model:
    """The posterior of one shape under one scatter: Gaussian, with its evidence."""

    def __init__(
        self, odds: float, columns: list[int], features: Array, spread: float | None, known: _Known, at: _Seen
    ) -> None:
        self.columns = columns
        targets, q = known.mean.shape[0], len(columns)
        precision, mean = known.precision, known.mean
        if spread is not None:
            precision = np.column_stack([precision, np.full(targets, 1.0 / spread**2)])
            mean = np.column_stack([mean, np.zeros(targets)])
        normal = np.einsum("ka,kij,kb->iajb", features, at.information, features, optimize=True)
        self.normal = normal.reshape(targets * q, targets * q) + np.diag(precision.ravel())
        pull = (features.T @ at.pull).T.ravel() + (precision * mean).ravel()
        self.mean = np.linalg.solve(self.normal, pull)
        self.log_weight = odds + at.evidence + 0.5 * float(pull @ self.mean)
        self.log_weight -= 0.5 * float(np.linalg.slogdet(self.normal)[1])
        self.log_weight += 0.5 * float(np.log(precision).sum() - (precision * mean**2).sum())

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """(count × coefficients)."""
        root = np.linalg.cholesky(self.normal)
        noise = np.linalg.solve(root.T, rng.standard_normal((self.mean.size, count)))
        return np.asarray((self.mean[:, None] + noise).T)


def _drawn(
    models: list[_Model], shapes: tuple[Shape, ...], targets: int, width: int, rng: np.random.Generator
) -> Alternatives:
    """Draws of the mixture, each model as often as it is likely (systematic resampling)."""
    log = np.array([m.log_weight for m in models])
    share = np.exp(log - log.max())
    at = np.cumsum(share / share.sum())
    pick = np.minimum(np.searchsorted(at, (np.arange(DRAWS) + rng.random()) / DRAWS), len(models) - 1)
    out = np.zeros((2, DRAWS, width))
    for k in np.unique(pick):
        rows = np.flatnonzero(pick == k)
        drawn = models[k].draw(rows.size, rng).reshape(rows.size, targets, -1)
        for i in range(targets):
            out[i][np.ix_(rows, models[k].columns)] = drawn[:, i]
    out = np.round(out, 5)  # a file of the law stays short
    return Alternatives(shapes, out[0], out[1])
