"""Where in (lr, batch) the target is run next: the law's optimum first, then where its own runs say it may lie.

A function of the runs so far and a seed, so that workers that have seen the same runs agree.
"""

from __future__ import annotations

import math

import numpy as np

from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.policy.design import GOOD_LOSS, Cell, Design
from metaopt_hpo.scaling.policy.points import (
    MADE,
    TRIES,
    Box,
    FittedBowl,
    Runs,
    centre_inside,
    cover,
    made,
    pilot_point,
    spread_points,
)
from metaopt_hpo.scaling.policy.target_model import LOSS_NOISE, TargetModel, considered
from metaopt_hpo.scaling.sameness import same

EVEN = 300
"""Points considered in the box, and as many in each of two neighbourhoods: what the law holds possible, and the best
run's."""

WIDE = 3.0
"""Half-width of the law's neighbourhood, in standard deviations of the optimum."""

NEAR = 0.5
"""Half-width of the best run's, ln units."""

STEP = 0.3
"""Standard deviation, ln units, of a step away from a place that is taken."""

Point = tuple[float, float]


def target_point(runs: Runs, cell: Cell, box: Box, bowl: FittedBowl | None, seed: int) -> Point:
    """(lr, batch) of the next run of the target: the one likeliest to gain what counts as good (`target_model`).

    Runs under way count at their expected losses. No run is made twice; where a run came out as one that had been made
    already, because what was asked for is not to be had, the next covers the box.
    """
    there = runs.at(cell)
    if bowl is None:
        return pilot_point(runs, cell, box, None, seed)
    if _repeated(there):
        return cover(there, cell, box, there.n, seed)
    centre = centre_inside(bowl, cell, box)
    sd = _spread_beside(runs, cell, box)
    first = (bowl.margin(sd**2), 0.0)
    if not there.n:
        return box.clip(centre[0] + first[0], centre[1])
    try:
        x, y = _likeliest(there, bowl, centre, sd, first, box, seed)
    except np.linalg.LinAlgError:  # losses beyond all bounds
        x, y = math.nan, math.nan
    point = box.clip(x, y)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, there.n])
    for _ in range(TRIES):
        if not made(there, *point):
            break  # a crowded place is left step by step
        x, y = (float(v) for v in (x, y) + STEP * rng.standard_normal(2))
        point = box.inside(x, y)
    return point


def _likeliest(
    there: Runs, bowl: FittedBowl, centre: Point, sd: float, first: Point, box: Box, seed: int
) -> Point:
    """(ln lr, ln B) of the best chance to gain, of all points considered that have no run.

    A run's noise is decided by the target's own runs, from `LOSS_NOISE` on: the residuals of the pilots' fit hold what
    no quadratic can follow too, and as noise that would hide from the model what its process is there to follow.
    """
    done = there.done()
    done = done.where(np.isin(np.arange(done.n), considered(np.log(done.loss))))
    at, log_loss = _from(centre, done), np.log(done.loss)
    placed = np.isfinite(there.lr) & np.isfinite(there.batch)
    taken = _from(centre, there.where(placed))
    waiting = _from(centre, there.where(placed & np.isnan(there.loss)))
    points = _points(centre, sd, box, done, seed)
    here = np.array(first)
    # of those under way without a place it is not known where they are: where they would have been proposed
    for _ in range(there.n - taken.shape[0] + 1 if there.n > taken.shape[0] else 1):
        model = TargetModel(bowl.surface, at, log_loss, sd, LOSS_NOISE)
        if waiting.size:
            at, log_loss = np.vstack([at, waiting]), np.concatenate([log_loss, model.expected(waiting)])
            model = TargetModel(bowl.surface, at, log_loss, sd, LOSS_NOISE)
        if at.size:
            free = points[(np.abs(points[:, None, :] - taken[None]).max(axis=2) >= MADE).all(axis=1)]
            if not free.size:
                break
            here = free[int(np.argmax(model.chance_of_gain(free, GOOD_LOSS)))]
        waiting, taken = here[None], np.vstack([taken, here])
    return centre[0] + float(here[0]), centre[1] + float(here[1])


def _points(centre: Point, sd: float, box: Box, done: Runs, seed: int) -> Array:
    """To choose from, from the law's optimum on: even over the box, about that optimum, about the best run."""
    low, high = np.log([box.lr[0], box.batch[0]]), np.log([box.lr[1], box.batch[1]])
    even = spread_points(EVEN, seed & 0xFFFFFFFF)
    about = np.array(centre)
    parts = [low + even * (high - low), about + (2 * even - 1) * WIDE * sd]
    if done.n:
        best = int(np.argmin(done.loss))
        parts.append(np.log([done.lr[best], done.batch[best]]) + (2 * even - 1) * NEAR)
    return np.asarray(np.clip(np.vstack(parts), low, high) - about)


def _spread_beside(runs: Runs, cell: Cell, box: Box) -> float:
    """Standard deviation of the optimum at a cell, from the runs of all others."""
    counts = {c: n for c, n in runs.counts().items() if not (same(c[0], cell[0]) and same(c[1], cell[1]))}
    return math.sqrt(Design(counts, cell, box.spread).variance(cell))


def _from(centre: Point, runs: Runs) -> Array:
    return np.column_stack([np.log(runs.lr) - centre[0], np.log(runs.batch) - centre[1]])


def _repeated(there: Runs) -> bool:
    """Whether the last run came out as one made before, at the same loss: something moves runs to where they can be."""
    if there.n < 2 or not (math.isfinite(there.lr[-1]) and math.isfinite(there.batch[-1])):
        return False
    before = there.where(np.arange(there.n) < there.n - 1)
    before = before.where(before.loss == there.loss[-1])
    return made(before, float(there.lr[-1]), float(there.batch[-1]))
