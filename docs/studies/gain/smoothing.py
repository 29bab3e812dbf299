"""A cell's losses with less of one run's noise."""

from __future__ import annotations

import numpy as np

from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.forms.surface import Array

BANDWIDTH = 1.0
"""Width, ln units, of the neighbourhood that a smoothed loss comes from."""


def smoothed(grid: CellGrid) -> CellGrid:
    """The cell with each loss replaced by that of a local quadratic fitted around it: less of one run's noise.

    Weights are Gaussian in (ln lr, ln batch) with `BANDWIDTH`; ln loss is fitted.
    """
    p, z = grid.points, np.log(grid.loss)
    out: list[float] = []
    for point in p:
        d = p - point
        w = np.sqrt(np.exp(-0.5 * (d**2).sum(axis=1) / BANDWIDTH**2))
        basis = np.column_stack([np.ones(len(d)), d, d**2, d[:, 0] * d[:, 1]])
        out.append(float(np.linalg.lstsq(basis * w[:, None], z * w, rcond=None)[0][0]))
    loss: Array = np.exp(np.array(out))
    return CellGrid(np.exp(p[:, 0]), np.exp(p[:, 1]), loss)
