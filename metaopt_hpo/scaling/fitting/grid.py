"""One cell's measured losses as a function of lr and batch: linear between runs, nothing outside them.

Replay looks trials up here, and held-out predictions are scored here. Linear interpolation never invents a
loss below the best measured one; between grid points it overstates the loss of a convex surface a little (about
0.05 % on √2-spaced grids), which counts against every predicted point.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from metaopt_hpo.scaling.forms.surface import Array


class CellGrid:
    """Mean loss over repeated runs at each (lr, batch) of one cell.

    Args:
        lr, batch, loss: one value a run.
    """

    def __init__(self, lr: Array, batch: Array, loss: Array) -> None:
        points = np.round(np.column_stack([np.log(lr), np.log(batch)]), 6)
        unique, index = np.unique(points, axis=0, return_inverse=True)
        index = index.reshape(-1)
        count = np.bincount(index)
        self.points = unique
        self.loss = np.bincount(index, loss) / count
        best = int(np.argmin(self.loss))
        self.best = float(self.loss[best])
        self.best_lr = math.exp(unique[best, 0])
        self.best_batch = math.exp(unique[best, 1])
        self._low, self._high = unique.min(axis=0), unique.max(axis=0)
        self._flat = self._high[1] - self._low[1] < 1e-6
        self._interpolate: LinearNDInterpolator | None = None
        if not self._flat:
            try:
                self._interpolate = LinearNDInterpolator(unique, self.loss)
            except QhullError:  # all runs on one line: only measured points are known
                self._interpolate = None

    def at(self, lr: float, batch: float) -> float:
        """Loss at (lr, batch): interpolated inside the runs' convex hull, NaN outside."""
        x, y = math.log(lr), math.log(batch)
        tolerance = 1e-5
        if (x < self._low[0] - tolerance) or (x > self._high[0] + tolerance):
            return math.nan
        near = np.abs(self.points - (x, y)).max(axis=1)
        hit = int(near.argmin())
        if near[hit] < tolerance:
            return float(self.loss[hit])
        if self._flat:
            if abs(y - self._low[1]) > 1e-3:
                return math.nan
            return float(np.interp(x, self.points[:, 0], self.loss))
        if self._interpolate is None:
            return float(self.loss[hit]) if near[hit] < 1e-3 else math.nan
        return float(self._interpolate(np.array([[x, y]]))[0])

    def clip(self, lr: float, batch: float) -> tuple[float, float]:
        """The point inside the runs' hull that is nearest on the way to the nearest run."""
        x = min(max(math.log(lr), self._low[0]), self._high[0])
        y = min(max(math.log(batch), self._low[1]), self._high[1])
        target = self.points[np.hypot(self.points[:, 0] - x, self.points[:, 1] - y).argmin()]
        if math.isfinite(self.at(math.exp(x), math.exp(y))):
            return math.exp(x), math.exp(y)
        outside, inside = 0.0, 1.0  # the hull is convex: the way to a run enters it once
        for _ in range(10):
            t = 0.5 * (outside + inside)
            if math.isfinite(self.at(math.exp(x + (target[0] - x) * t), math.exp(y + (target[1] - y) * t))):
                inside = t
            else:
                outside = t
        return math.exp(x + (target[0] - x) * inside), math.exp(y + (target[1] - y) * inside)

    def excess(self, lr: float, batch: float) -> float:
        """Relative loss above the grid's best at (lr, batch), clipped into the grid."""
        return self.at(*self.clip(lr, batch)) / self.best - 1.0

    def at_edge(self) -> tuple[bool, bool]:
        """Whether the best run has an extreme lr, or an extreme batch, of this cell."""
        x, y = math.log(self.best_lr), math.log(self.best_batch)
        out = []
        for i, value in enumerate((x, y)):
            span = self._high[i] - self._low[i]
            out.append(span < 1e-6 or min(value - self._low[i], self._high[i] - value) < 1e-5)
        return out[0], out[1]
