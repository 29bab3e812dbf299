"""The runs of a search, the box it searches, the bowl they show, and where in the box the next pilot goes.

A pilot is put where it shows both slopes of the bowl. A function of the runs so far and a seed, so that workers that
have seen the same runs agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.base.conflict import disagreement
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.fitting.cells import make_cells, thin
from metaopt_hpo.scaling.fitting.pointfit import PointFit, base_fit, point_fit
from metaopt_hpo.scaling.forms.surface import Array, Surface
from metaopt_hpo.scaling.policy.design import Cell, Design
from metaopt_hpo.scaling.sameness import all_same, group

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law

Bounds = tuple[float, float]

FIRST = 3
"""Runs over the whole box before a fitted quadratic is used."""

WIDEST = 500
"""Runs a fit reads, evenly from all cells; more would cost time and move no proposal."""

REACH = 2.0
"""Half-width of a pilot's neighbourhood, in standard deviations of the optimum there."""

LEAST_REACH = 0.7
"""Half-width, ln units, below which a pilot would see the flat part of its optimum only."""

MADE = 0.02
"""Distance, ln units, below which two runs of a cell are one: it is not made again."""

TRIES = 50
"""Places looked at for one that has no run; in a box of a single point there is none."""


@dataclass(frozen=True)
class Runs:
    """Runs so far, one value each; loss is NaN for one under way, or that gave none."""

    size: Array
    tokens: Array
    batch: Array
    lr: Array
    loss: Array

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float, float, float, float]]) -> Runs:
        """From (size, tokens, batch, lr, loss) of each run; one whose size or tokens are no such is left out."""
        listed = list(rows)
        try:
            values = np.array(listed, dtype=float)
        except OverflowError:
            values = np.array([[_as_float(v) for v in row] for row in listed])
        runs = cls(*values.reshape(-1, 5).T)
        placed = _positive(runs.size) & _positive(runs.tokens)
        runs = runs if placed.all() else runs.where(placed)
        nowhere = ~(_positive(runs.batch) & _positive(runs.lr))
        runs.batch[nowhere], runs.lr[nowhere] = np.nan, np.nan
        return runs

    def __add__(self, other: Runs) -> Runs:
        """These runs, then those."""
        return Runs(*(np.concatenate([getattr(r, f.name) for r in (self, other)]) for f in fields(Runs)))

    @property
    def n(self) -> int:
        """Number of runs."""
        return self.size.size

    def counts(self, known: Iterable[Cell] = ()) -> Counter[Cell]:
        """Runs of each cell; runs of a `known` cell are counted under that one's own size and tokens."""
        size, tokens = group(self.size), group(self.tokens)
        for cell in known:
            there = all_same(self.size, cell[0]) & all_same(self.tokens, cell[1])
            size[there], tokens[there] = cell
        return Counter(zip(size.tolist(), tokens.tolist(), strict=True))

    def at(self, cell: Cell) -> Runs:
        """The runs of one cell: of the same size and tokens."""
        return self.where(all_same(self.size, cell[0]) & all_same(self.tokens, cell[1]))

    def with_unfinished(self, cell: Cell, count: int) -> Runs:
        """And `count` runs of a cell of which nothing is known."""
        return self + Runs.of([(*cell, math.nan, math.nan, math.nan)] * count)

    def done(self) -> Runs:
        """The runs with a positive, finite loss."""
        return self.where(_positive(self.loss) & _positive(self.lr) & _positive(self.batch))

    def where(self, mask: NDArray[np.bool_]) -> Runs:
        """The runs marked."""
        return Runs(self.size[mask], self.tokens[mask], self.batch[mask], self.lr[mask], self.loss[mask])


def _as_float(value: float) -> float:
    """A number as a float; one beyond all floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _positive(values: Array) -> NDArray[np.bool_]:
    return (values > 0) & np.isfinite(values)


@dataclass(frozen=True)
class FittedBowl:
    """What a proposal needs of a fit: the centre at a cell, and the shape."""

    surface: Surface
    fit: PointFit | Law

    def centre(self, cell: Cell) -> tuple[float, float]:
        """(ln lr*, ln B*)."""
        if isinstance(self.fit, PointFit):
            return self.fit.centre(*cell)
        return self.fit.at(*cell)[:2]

    @property
    def curvature(self) -> float:
        """Of ln loss in ln lr."""
        return float(self.surface.h[0])

    def margin(self, variance: float) -> float:
        """Shift of ln lr to that of least expected loss where the optimum scatters so: as `Law.margin`."""
        return self.surface.margin(variance)


def fitted_bowl(runs: Runs, law: Law | None = None, base: Base | None = None) -> FittedBowl | None:
    """The law's bowl, or one fitted to the finished runs in milliseconds; None where they show none.

    With a base there is one before any run has finished, unless the runs disagree with it.
    """
    if law is not None:
        return FittedBowl(law.surface, law)
    done = runs.done()
    if done.n < FIRST and base is None:
        return None
    if not done.n and base is not None:
        known = base_fit(base)
        return None if known is None else FittedBowl(known.surface, known)
    cells = thin(make_cells(done.size, done.tokens, done.batch, done.lr, done.loss), WIDEST)
    if base is not None and disagreement(cells, base) is not None:
        base = None
    try:
        fit = point_fit(cells, base=base)
    except (LawRefused, np.linalg.LinAlgError):
        return None
    return FittedBowl(fit.surface, fit)


@dataclass(frozen=True)
class Box:
    """The searched (lr, batch), its centre and its width."""

    lr: Bounds
    batch: Bounds

    @property
    def two(self) -> bool:
        """Whether the batch is searched too."""
        return self.batch[1] > self.batch[0] * (1 + 1e-9)

    @property
    def spread(self) -> float:
        """Standard deviation of ln lr over the box; of one octave at least."""
        ratio = self.lr[1] / self.lr[0]
        width = math.log(ratio) if ratio < math.inf else math.log(self.lr[1]) - math.log(self.lr[0])
        return max(width, math.log(2.0)) / math.sqrt(12.0)

    def clip(self, x: float, y: float) -> tuple[float, float]:
        """(lr, batch) inside, from logarithms."""
        lr, batch = math.exp(min(max(x, -700.0), 700.0)), math.exp(min(max(y, -700.0), 700.0))
        return min(max(lr, self.lr[0]), self.lr[1]), min(max(batch, self.batch[0]), self.batch[1])

    def inside(self, x: float, y: float) -> tuple[float, float]:
        """(lr, batch) from logarithms, mirrored at the sides: points beyond one do not all become one."""
        out = []
        for value, bounds in ((x, self.lr), (y, self.batch)):
            low, high = (math.log(b) for b in bounds)
            width = high - low
            away = (value - low) % (2 * width) if width > 0 else 0.0
            out.append(min(max(math.exp(low + min(away, 2 * width - away)), bounds[0]), bounds[1]))
        return out[0], out[1]

    def part(self, x: float, y: float, reach: float, u: float, v: float) -> tuple[float, float]:
        """(lr, batch) at fractions of what lies within `reach` of (x, y) and in the box."""
        out = []
        for value, bounds, w in ((x, self.lr, u), (y, self.batch, v)):
            low, high = max(value - reach, math.log(bounds[0])), min(value + reach, math.log(bounds[1]))
            out.append(min(max(math.exp(low + w * (high - low)), bounds[0]), bounds[1]))
        return out[0], out[1]

    def at(self, u: float, v: float) -> tuple[float, float]:
        """(lr, batch) at fractions of the log range."""
        return _between(self.lr, u), _between(self.batch, v)


def _between(bounds: Bounds, w: float) -> float:
    low, high = bounds
    if high / low < math.inf:
        value = float(low * (high / low) ** w)
    else:
        value = math.exp(min((1 - w) * math.log(low) + w * math.log(high), math.log(high)))
    return min(max(value, low), high)


def spread_points(n: int, seed: int) -> Array:
    """n points of an additive recurrence in the unit square (plastic number): even at every length."""
    g = 1.32471795724474602596
    alpha = np.array([1.0 / g, 1.0 / g**2])
    shift = np.random.default_rng(seed).random(2)
    return np.asarray((shift + np.arange(1, n + 1)[:, None] * alpha) % 1.0)


def pilot_point(runs: Runs, cell: Cell, box: Box, bowl: FittedBowl | None, seed: int) -> tuple[float, float]:
    """(lr, batch) of the next pilot of a cell.

    Evenly over the box before there is a bowl, then evenly over a neighbourhood of its optimum that is as wide as
    the optimum is unknown there.
    """
    there = runs.at(cell)
    if bowl is None:
        return cover(there, cell, box, there.n, seed)
    u, v = _even(cell, there.n, seed)
    x, y = centre_inside(bowl, cell, box)
    sd = math.sqrt(Design(runs.counts((cell,)), cell, box.spread).variance(cell))
    reach = max(LEAST_REACH, REACH * sd)
    return box.part(x, y, reach, u, v)


def made(there: Runs, lr: float, batch: float) -> bool:
    """Whether the cell has a run there already; one without lr is nowhere yet."""
    away = np.maximum(np.abs(np.log(there.lr / lr)), np.abs(np.log(there.batch / batch)))
    return bool((away < MADE).any())


def centre_inside(bowl: FittedBowl, cell: Cell, box: Box) -> tuple[float, float]:
    """The bowl's centre in the box: where the batch is held back, lr moves along the valley with it."""
    x, y = bowl.centre(cell)
    held = min(max(y, math.log(box.batch[0])), math.log(box.batch[1]))
    if bowl.surface.has_batch:
        x += bowl.surface.lr_given_batch(held - y)
    return min(max(x, math.log(box.lr[0])), math.log(box.lr[1])), held


def cover(there: Runs, cell: Cell, box: Box, k: int, seed: int) -> tuple[float, float]:
    """The first of evenly spread points of the box, from the k-th on, where nothing has been run."""
    for j in range(k, k + TRIES):
        point = box.at(*_even(cell, j, seed))
        if not made(there, *point):
            break
    return point


def _even(cell: Cell, k: int, seed: int) -> tuple[float, float]:
    """The k-th of evenly spread points of the unit square, in an order of the cell's own."""
    key = np.random.SeedSequence([seed & 0xFFFFFFFF, *_words(cell)]).generate_state(1)[0]
    u, v = spread_points(k + 1, int(key))[-1]
    return float(u), float(v)


def _words(cell: Cell) -> list[int]:
    """A cell as seed words; the same for sizes that differ in the seventh digit."""
    return [int(w) for v in cell for w in divmod(round(float(f"{v:.6g}")) & (2**64 - 1), 2**32)]
