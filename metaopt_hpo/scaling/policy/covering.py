"""Where the target is run again: the point likeliest to be good among those that no run so far is as good as.

The optimum of the target scatters about the law's. Its posterior lives on a lattice of shifts, weighed by the finished
runs of the target through the law's bowl. A point covers the shifts under which it is good (`GOOD_LOSS`); the next one
covers the most probability that those made before, running ones included, have left (greedy maximum coverage).
"""

from __future__ import annotations

import numpy as np

from metaopt_hpo.scaling.forms.surface import Array, Surface
from metaopt_hpo.scaling.policy.design import GOOD_LOSS

SIDE = 25
"""Shifts along one axis."""

WIDE = 3.0
"""Half-width of the lattice in standard deviations."""


def lattice(sd: float, *, two: bool) -> Array:
    """(shifts × 2) in (ln lr, ln batch)."""
    line = np.linspace(-WIDE, WIDE, SIDE) * sd
    dx, dy = (m.ravel() for m in np.meshgrid(line, line if two else np.zeros(1)))
    return np.column_stack([dx, dy])


def posterior(shifts: Array, surface: Surface, at: Array, log_loss: Array, sd: float, noise: float) -> Array:
    """Probability of each shift of the optimum.

    Args:
        shifts: from `lattice`.
        surface: the law's bowl.
        at: (finished runs × 2), from the law's optimum.
        log_loss: of them; their level says nothing.
        sd: of the shifts beforehand.
        noise: standard deviation of ln loss about the bowl.
    """
    energy = 0.5 * (shifts**2).sum(axis=1) / sd**2
    if log_loss.size:
        away = at[:, None, :] - shifts[None, :, :]
        residual = log_loss[:, None] - surface.excess(away[..., 0], away[..., 1])
        residual = residual - residual.mean(axis=0)
        energy = energy + 0.5 * (residual**2).sum(axis=0) / noise**2
    p = np.exp(energy.min() - energy)
    return np.asarray(p / p.sum())


def uncovered(shifts: Array, p: Array, surface: Surface, made: Array) -> tuple[float, float]:
    """The shift at which a run covers most of what `made`, places from the law's optimum, leave uncovered."""

    def good(points: Array) -> Array:
        away = points[:, None, :] - shifts[None, :, :]
        return np.asarray(surface.excess(away[..., 0], away[..., 1]) < GOOD_LOSS)

    left = p * ~good(made).any(axis=0) if made.size else p
    best = int(np.argmax(good(shifts) @ left))
    return float(shifts[best, 0]), float(shifts[best, 1])
