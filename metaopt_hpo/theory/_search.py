"""Derivative-free minimisation on an interval by repeated grids: vectorised, and safe on nearly flat valleys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_POINTS = 33
_ROUNDS = 16


def minimise_scalar(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """argmin of f on [low, high], one interval a row; f takes and returns (rows, points)."""
    low, high = np.asarray(low, dtype=float).copy(), np.asarray(high, dtype=float).copy()
    grid = low[:, None]
    unit = np.linspace(0.0, 1.0, _POINTS)
    best = low
    for _ in range(_ROUNDS):
        grid = low[:, None] + (high - low)[:, None] * unit
        index = np.argmin(np.broadcast_to(f(grid), grid.shape), axis=1)
        rows = np.arange(len(low))
        best = grid[rows, index]
        low = grid[rows, np.maximum(index - 2, 0)]
        high = grid[rows, np.minimum(index + 2, _POINTS - 1)]
    return best


def minimise_nested(f: Callable[[Array], Array], low: float, high: float) -> float:
    """argmin on [low, high] of an f that takes and returns one vector of points (itself an inner minimum)."""
    best = low
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _POINTS)
        index = int(np.argmin(f(grid)))
        best = float(grid[index])
        low, high = float(grid[max(index - 2, 0)]), float(grid[min(index + 2, _POINTS - 1)])
    return best
