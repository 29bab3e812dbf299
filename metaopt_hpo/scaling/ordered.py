"""Ordered cross-validation: fit on smaller sizes (fewer tokens), score on the next. What it decides:
how much of the way beyond the fitted range is copied from its edge rather than extrapolated.

Random splits would answer another question: interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.cells import Cells
from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.grid import CellGrid
from metaopt_hpo.scaling.surface import Array

COPYING = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates: 0 extrapolates, 1 copies the optimum of the range's edge."""

MIN_SCORED = 6
"""Held-out cells below which the choice is noise and extrapolation stays."""

MISSED = 3e-3
"""Mean excess loss on the held-out cells from which a law is called into question: what one of widths should reach."""

Centre = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Trust:
    """Outcome for one axis.

    Attributes:
        copying: share of the extrapolated way that is copied.
        scores: mean excess loss at each of `COPYING` on the held-out cells (empty where there are none).
        cells: number of held-out cells scored.
    """

    copying: float = 0.0
    scores: tuple[float, ...] = ()
    cells: int = 0

    @property
    def excess(self) -> float | None:
        """Mean excess loss on the held-out cells at the share chosen."""
        return self.scores[COPYING.index(self.copying)] if self.scores else None


def splits(values: Array, minimum: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(train, test) masks of cells: each distinct value from the `minimum`-th on is predicted from those below."""
    distinct = np.unique(values)
    for v in distinct[minimum:]:
        yield values < v, values == v


def measure_trust(cells: Cells, axis: str, fit_centre: Callable[[Cells], Centre | None]) -> Trust:
    """Choose how much to copy along one axis ("size" or "tokens").

    `fit_centre` fits cells and returns (size, tokens) → (ln lr*, ln B*), or None where they cannot bear a fit.
    Extrapolation is kept unless another share is better by more than a standard error over the cells.
    """
    values = cells.cell_size if axis == "size" else cells.cell_tokens
    losses: list[list[float]] = []
    for train, test in splits(values, 2):
        # only cells whose other coordinate was seen: one axis is tested at a time
        other = cells.cell_tokens if axis == "size" else cells.cell_size
        test = test & np.isin(other, other[train])
        if not test.any():
            continue
        centre = fit_centre(cells.subset(train))
        if centre is None:
            continue
        edge = float(values[train].max())
        for j in np.flatnonzero(test):
            grid = cell_grid(cells, int(j))
            row = []
            for share in COPYING:
                moved = edge * (float(values[j]) / edge) ** (1.0 - share)
                size, tokens = float(cells.cell_size[j]), float(cells.cell_tokens[j])
                x, y = centre(moved, tokens) if axis == "size" else centre(size, moved)
                row.append(grid.excess(math.exp(x), math.exp(y)))
            losses.append(row)
    if not losses:
        return Trust()
    table = np.array(losses)
    means = table.mean(axis=0)
    if len(losses) < MIN_SCORED:
        return Trust(0.0, tuple(float(m) for m in means), len(losses))
    best = int(means.argmin())
    gain = table[:, 0] - table[:, best]
    error = float(gain.std(ddof=1)) / math.sqrt(len(losses))
    share = COPYING[best] if float(gain.mean()) > error else 0.0
    return Trust(share, tuple(float(m) for m in means), len(losses))


def validation_cautions(trust: Mapping[str, Trust]) -> list[Caution]:
    """A caution for each axis along which the law, fitted below, missed what came next."""
    out = []
    for name, t in trust.items():
        if t.excess is not None and t.excess > MISSED:
            below, after = ("smaller sizes", "larger") if name == "size" else ("fewer tokens", "longer")
            message = (
                f"fitted to {below} only, the law missed the next {after} ones by {100 * t.excess:.2g} % of loss "
                f"({t.cells} cell{'s' if t.cells > 1 else ''}): add sizes or seeds before trusting its lr"
            )
            out.append(Caution(f"missed-{name}", message))
    return out


def cell_grid(cells: Cells, j: int) -> CellGrid:
    """The measured losses of one cell."""
    rows = cells.cell == j
    return CellGrid(np.exp(cells.x[rows]), np.exp(cells.y[rows]), np.exp(cells.z[rows]))
