"""Protocol levels: what a study with another learning-rate grid would report, read off the runs of practice.

A level is a way of laying the grid (its spacing, its width, its cap) or of reading it (the joint argmin over lr and
batch). A grid that is too narrow or capped hides optima beyond its ends. A study that takes the best learning rate it
ran for the optimum is one level, a study that knows its edges for edges (intervals) another. Nothing is run again:
the optima of practice lie inside its own, wider grid, and an end of a narrower one shows its lowest loss where they
lie beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.attribution.estimand import Plane, Resample, optima, plane_through
from metaopt_hpo.attribution.levels import Setting
from metaopt_hpo.attribution.stepping import GridResult
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.intervals import interval
from metaopt_hpo.theory.minima import Minima

Array = NDArray[np.float64]
SPACING = 2
"""The coarse grid keeps every other learning rate: a ratio of four where practice has two."""
WIDTH = 8.0
"""Highest over lowest learning rate of the narrow grid, which is the same in every cell, about the middle optimum."""
CAPPED = 0.25
"""Share of the cells whose optimum lies above the cap, a largest learning rate that is the same in every cell."""
ARGMIN = "joint argmin over (lr, B)"


@dataclass(frozen=True, slots=True)
class ProtocolLevel:
    """What practice's runs say under one protocol."""

    name: str
    lr: Estimate
    """Exponent of the optimal lr in D along the experiment's batch path; of joint argmins, along their own."""
    effect: Estimate
    """That minus practice's own exponent, on common resamples."""
    batch: Estimate | None = None
    """Exponent of the batch in D that joint argmins follow; None elsewhere."""
    censored: float = 0.0
    """Share of cells whose optimum lies beyond the grid."""

    @property
    def moves(self) -> bool:
        """Whether the protocol changes what is reported: its effect's interval excludes 0."""
        return 0 not in self.effect


def protocol_levels(
    result: GridResult, setting: Setting, resample: Resample, practice: Plane, *, b: float
) -> tuple[ProtocolLevel, ...]:
    """Every protocol level of one setting's final loss, against `practice`, its plane on the whole grid.

    Args:
        b: batch exponent at which exponents are stated.

    Raises:
        AttributionError: a level whose grid leaves too few cells to fit a plane.
    """
    path = np.array([1.0, b])
    own = practice.samples @ path

    def level(name: str, minima: Minima) -> ProtocolLevel:
        plane = plane_through(minima, result, resample)
        return _against(own, name, plane.samples @ path, censored=plane.censored)

    whole = optima(result, [setting], "final-loss", resample)
    coarse = optima(result, [setting], "final-loss", resample, every=SPACING)
    middle = _points(whole)
    known = middle[0][np.isfinite(middle[0])]
    half = 0.5 * np.log(WIDTH)
    narrow = (float(np.median(known)) - half, float(np.median(known)) + half)
    capped = (-np.inf, float(np.quantile(known, 1 - CAPPED)))
    levels = [level(f"grid spacing × {SPACING}", coarse)]
    for name, (low, high) in ((f"grid width × {WIDTH:g}", narrow), ("lr cap", capped)):
        hidden = float(((whole.high <= low) | (whole.low >= high))[0].mean())
        edge = np.clip(middle, low, high)
        at_face_value = level(f"{name}, edges as optima", replace(whole, low=edge, high=edge))
        levels.append(replace(at_face_value, censored=hidden))
        levels.append(level(f"{name}, edges as intervals", _within(whole, low, high)))
    lr, batch = _joint_argmins(whole, middle, result, resample)
    joint = _against(own, ARGMIN, lr)
    return (*levels, replace(joint, batch=interval(float(batch[0]), batch[1:])))


def _against(own: Array, name: str, samples: Array, *, censored: float = 0.0) -> ProtocolLevel:
    effect = samples - own
    return ProtocolLevel(
        name,
        interval(float(samples[0]), samples[1:]),
        interval(float(effect[0]), effect[1:]),
        censored=censored,
    )


def _within(minima: Minima, low: float, high: float) -> Minima:
    """Optima as a grid from `low` to `high` shows them: those beyond an end lie somewhere beyond it."""
    below, above = minima.high <= low, minima.low >= high
    return replace(
        minima,
        low=np.where(above, high, np.where(below, -np.inf, minima.low)),
        high=np.where(below, low, np.where(above, np.inf, minima.high)),
    )


def _points(minima: Minima) -> Array:
    """One ln lr a cell: the optimum, the middle of its interval, or the end that is known."""
    low, high = (
        np.where(np.isinf(a), b, a) for a, b in ((minima.low, minima.high), (minima.high, minima.low))
    )
    return np.asarray(0.5 * (low + high))


def _joint_argmins(
    minima: Minima, middle: Array, result: GridResult, resample: Resample
) -> tuple[Array, Array]:
    """Exponents (lr, batch) in D, (1 + bootstrap,) each, of the cells with the lowest loss at each budget."""
    tokens = result.tokens[resample.cells]
    loss = np.where(np.isfinite(minima.value), minima.value, np.inf)
    log_b = np.log(result.batch)[resample.cells]
    rows = np.arange(len(loss))
    log_d, log_lr, batch, drawn = [], [], [], []
    for d in np.unique(result.tokens):
        mine = np.where(tokens == d, loss, np.inf)
        best = np.argmin(mine, axis=1)
        log_d.append(np.full(len(rows), np.log(d)))
        log_lr.append(middle[rows, best])
        batch.append(log_b[rows, best])
        drawn.append(np.isfinite(mine[rows, best]))
    weight = np.transpose(drawn).astype(float)
    x = np.transpose(log_d)
    away = weight * (x - (weight * x).sum(1, keepdims=True) / weight.sum(1, keepdims=True))
    spread = (away * x).sum(axis=1)

    def slope(values: list[Array]) -> Array:
        known = np.where(weight > 0, np.transpose(values), 0.0)
        return np.asarray((away * known).sum(axis=1) / np.where(spread > 0, spread, np.nan))

    return slope(log_lr), slope(batch)
