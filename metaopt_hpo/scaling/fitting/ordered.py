"""Ordered cross-validation: fit on smaller sizes (fewer tokens), score on the next. What it decides:
how much of the way beyond the fitted range is copied from its edge rather than extrapolated.

Random splits would answer another question: interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import LARGEST, Caution
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.forms.surface import Array, Surface

COPYING = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates: 0 extrapolates, 1 copies the optimum of the range's edge."""

MIN_SCORED = 6
"""Held-out cells below which the choice is noise and extrapolation stays."""

DECIDED = 2.0
"""Standard errors by which copying must be better: the best of four candidates is better by one by luck alone."""

MISSED = 3e-3
"""Mean excess loss on the held-out cells from which a law is called into question: what one of widths should reach."""

Centre = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class OrderedValidation:
    """Outcome for one axis.

    Attributes:
        copying: share of the extrapolated way that is copied.
        scores: mean excess loss at each of `COPYING` on the held-out cells (empty where there are none).
        cells: number of held-out cells scored, those of one size and number of tokens counted once.
        missed: mean excess loss there at the share chosen, of the predicted point or of the measured run that the
            fit would choose, whichever lost less, for a coarse grid overstates what lies between its points; less
            what a lucky run among equals gains by noise alone.
    """

    copying: float = 0.0
    scores: tuple[float, ...] = ()
    cells: int = 0
    missed: float = 0.0


def splits(values: Array, minimum: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(train, test) masks of cells: each distinct value from the `minimum`-th on is predicted from those below."""
    distinct = np.unique(values)
    for v in distinct[minimum:]:
        yield values < v, values == v


class Fitted(Protocol):
    """A fit without intervals, such as `pointfit.PointFit`."""

    @property
    def surface(self) -> Surface: ...

    @property
    def scale(self) -> float: ...

    def centre(
        self, size: float, tokens: float, extra: Mapping[str, float] | None = None
    ) -> tuple[float, float]: ...


def measure_trust(
    cells: Cells, axis: str, fit: Callable[[Cells], Fitted | None], *, tied: bool = False
) -> OrderedValidation:
    """Choose how much to copy along one axis ("size" or "tokens").

    `fit` fits cells, or returns None where they cannot bear it. Extrapolation is kept unless another share is better
    by more than `DECIDED` standard errors over the cells. Where tokens are tied to size (`tied`) the next cell along
    their path is predicted and nothing is copied, for neither can be held while the other moves.
    """
    # about the table's own least, so that ties between triangulations of a regular grid break alike in any unit
    cells = replace(cells, x=cells.x - cells.x.min(), y=cells.y - cells.y.min())
    extras = cells.cell_extra()
    values = cells.cell_size if axis == "size" else cells.cell_tokens
    losses: dict[tuple[float, float], list[list[float]]] = {}
    missed: dict[tuple[float, float], list[list[float]]] = {}
    for train, test in splits(values, 2):
        if not tied:  # only cells whose other coordinate was seen: one axis is tested at a time
            other = cells.cell_tokens if axis == "size" else cells.cell_size
            test = test & np.isin(other, other[train])
        if not test.any():
            continue
        fitted = fit(cells.subset(train))
        if fitted is None:
            continue
        edge = float(values[train].max())
        for j in np.flatnonzero(test):
            grid = cell_grid(cells, int(j))
            size, tokens = float(cells.cell_size[j]), float(cells.cell_tokens[j])
            excess, miss = [], []
            for share in COPYING[:1] if tied else COPYING:
                moved = edge * (float(values[j]) / edge) ** (1.0 - share)
                n, d = (moved, tokens) if axis == "size" else (size, moved)
                x, y = fitted.centre(n, d, {name: float(v[j]) for name, v in extras.items()})
                excess.append(grid.excess(math.exp(min(x, LARGEST)), math.exp(min(y, LARGEST))))
                miss.append(_missed(grid, fitted, x, y, excess[-1]))
            losses.setdefault((size, tokens), []).append(excess)
            missed.setdefault((size, tokens), []).append(miss)
    if not losses:
        return OrderedValidation()
    # cells of one size and tokens differ by further coordinates only: they miss together and count once
    table = np.array([np.mean(rows, axis=0) for rows in losses.values()])
    means = table.mean(axis=0)
    best = int(means.argmin()) if len(losses) >= MIN_SCORED else 0
    gain = table[:, 0] - table[:, best]
    if best and not float(gain.mean()) > DECIDED * float(gain.std(ddof=1)) / math.sqrt(len(losses)):
        best = 0
    mean_missed = float(np.mean([np.mean(rows, axis=0)[best] for rows in missed.values()]))
    return OrderedValidation(COPYING[best], tuple(float(m) for m in means), len(losses), mean_missed)


def _missed(grid: CellGrid, fitted: Fitted, x: float, y: float, excess: float) -> float:
    """What a prediction at (ln lr, ln B) = (x, y) really lost of a grid; `excess` is its interpolated loss."""
    at = grid.points - (x, y)
    foretold = fitted.surface.excess(at[:, 0], at[:, 1] * fitted.surface.has_batch)
    chosen = float(grid.loss[foretold.argmin()]) / grid.best - 1.0
    equals = int((foretold <= foretold.min() + 2.0 * fitted.scale).sum())
    luck = NormalDist().inv_cdf(
        (equals - 0.375) / (equals + 0.25)
    )  # Blom: the expected best of so many draws
    return min(excess, chosen) - fitted.scale * luck


def validation_cautions(trust: Mapping[str, OrderedValidation]) -> list[Caution]:
    """A caution for each axis along which the law, fitted below, missed what came next."""
    out = []
    for name, t in trust.items():
        if t.missed > MISSED:
            below, after = ("smaller sizes", "larger") if name == "size" else ("fewer tokens", "longer")
            message = (
                f"fitted to {below} only, the law missed the next {after} ones by {100 * t.missed:.2g} % of loss "
                f"({t.cells} cell{'s' if t.cells > 1 else ''}): add sizes or seeds before trusting its lr"
            )
            out.append(Caution(f"missed-{name}", message))
    return out


def cell_grid(cells: Cells, j: int) -> CellGrid:
    """The measured losses of one cell."""
    rows = cells.cell == j
    return CellGrid(np.exp(cells.x[rows]), np.exp(cells.y[rows]), np.exp(cells.z[rows]))
