"""How far an unfinished run still falls: ln loss at t tokens over ln loss at the end T, from a table's curves.

A law knows the ends of runs planned for t tokens, whose lr has decayed by then. A run planned for T is still hot at
t, and a large batch or lr wins late, so its loss at t lies above the law there by an amount that only curves tell.
At each of a few distances ln(T/t) the fall is a linear function of where the run's lr and batch lie about their
optimum, fitted robustly, with the spread of runs about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.scaling.forms.surface import Array

if TYPE_CHECKING:
    from metaopt_hpo.scaling.fitting.cells import Cells
    from metaopt_hpo.scaling.forms.axes import Axes
    from metaopt_hpo.scaling.forms.surface import Surface
    from metaopt_hpo.trials.table import TrialTable

KNOTS = np.arange(0.0, 6.1, 0.5) * math.log(2.0)
"""Distances from the end, ln(T/t): half octaves back to 1/64 of a run."""

MIN_RUNS = 8
"""Finished runs with a curve at a distance, below which nothing is said of it."""

REACH = 2.0
"""Offsets of ln lr and ln batch from the optimum beyond which the fall stays what it is there."""

SLOPE_SPREAD = 0.1
"""Prior standard deviation of the fall per e-fold of lr or batch off the optimum."""


@dataclass(frozen=True)
class RemainingFall:
    """The fall at distances `left`.

    Attributes:
        left: ln(T/t), ascending from 0.
        mean: (distances × 3) coefficients of 1, ln lr − ln lr*, ln batch − ln batch*.
        spread: standard deviation of a run about that.
        runs: finished runs with a curve.
    """

    left: Array
    mean: Array
    spread: Array
    runs: int

    def at(self, left: float, u: float, v: float) -> tuple[float, float] | None:
        """(mean, standard deviation) of ln loss(t) − ln loss(T); None further back than curves reach."""
        if left > float(self.left[-1]):
            return None
        i = min(int(np.searchsorted(self.left, left, side="right")) - 1, len(self.left) - 2)
        low, high = float(self.left[i]), float(self.left[i + 1])
        w = (left - low) / (high - low)
        u, v = min(max(u, -REACH), REACH), min(max(v, -REACH), REACH)
        m = (1.0 - w) * self.mean[i] + w * self.mean[i + 1]
        spread = (1.0 - w) * float(self.spread[i]) + w * float(self.spread[i + 1])
        return float(m[0] + m[1] * u + m[2] * v), spread


def measure_fall(table: TrialTable, cells: Cells, axes: Axes, surface: Surface) -> RemainingFall | None:
    """The fall of those runs of `table` that are in `cells` and have a curve; None where fewer than `MIN_RUNS` do."""
    frame = table.frame
    known = (frame["curve_tokens"].notna() & frame["curve_loss"].notna()).to_numpy()
    columns = [frame[name].to_numpy() for name in ("tokens", "curve_tokens", "curve_loss")]
    x, y = surface.centre(axes.design(cells.size, cells.tokens, cells.extra))
    off_lr, off_batch = cells.x - x, (cells.y - y if surface.has_batch else np.zeros(cells.n))
    offsets: list[tuple[float, float, float]] = []
    falls: list[Array] = []
    for i, row in enumerate(cells.row):
        tokens, at, losses = (c[row] for c in columns)
        if not known[row] or len(at) != len(losses):
            continue
        t, z = np.asarray(at, dtype=float), np.asarray(losses, dtype=float)
        good = np.isfinite(z) & (z > 0) & (t > 0) & (t < tokens)
        if not good.any():
            continue
        left = np.append(np.log(tokens / t[good]), 0.0)
        above = np.append(np.log(z[good]) - cells.z[i], 0.0)
        order = np.argsort(left)
        falls.append(np.interp(KNOTS, left[order], above[order], right=math.nan))
        offsets.append((1.0, float(off_lr[i]), float(off_batch[i])))
    if len(falls) < MIN_RUNS:
        return None
    table_of_falls, design = np.array(falls), np.clip(np.array(offsets), -REACH, REACH)
    enough = np.isfinite(table_of_falls).sum(axis=0) >= MIN_RUNS
    count = int(np.argmin(enough)) if not enough.all() else len(KNOTS)
    if count < 2:
        return None
    fitted = [_regress(design, table_of_falls[:, i]) for i in range(count)]
    return RemainingFall(
        KNOTS[:count], np.array([m for m, _ in fitted]), np.array([s for _, s in fitted]), len(falls)
    )


def _regress(design: Array, fall: Array) -> tuple[Array, float]:
    """Robust ridge regression (soft-L1 by reweighting) and the spread about it, by its 90 % quantile."""
    known = np.isfinite(fall)
    x, y = design[known], fall[known]
    weight = np.ones(y.size)
    scale = max(1.4826 * float(np.median(np.abs(y - np.median(y)))), 1e-6)
    mean = np.array([float(np.median(y)), 0.0, 0.0])
    for _ in range(8):
        ridge = np.diag([1e-9, *[(scale / SLOPE_SPREAD) ** 2] * 2])
        mean = np.linalg.solve(x.T @ (weight[:, None] * x) + ridge, x.T @ (weight * y)).astype(np.float64)
        r = np.abs(y - x @ mean)
        scale = max(1.4826 * float(np.median(r)), 1e-6)
        weight = 1.0 / np.sqrt(1.0 + (r / (1.5 * scale)) ** 2)
    inflate = math.sqrt(y.size / max(y.size - 3, 0.25 * y.size))
    return mean, max(scale, float(np.quantile(r, 0.9)) / 1.645) * inflate
