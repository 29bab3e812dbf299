"""How sure a loss floor is: draws of it, and how far ordered validation finds their spread from the truth.

Three sizes fit three parameters exactly, so a bootstrap of cells believes any bend they show. What makes a floor
uncertain is that a whole size (its depth, heads, initialisation) or a whole number of tokens (its schedule)
lies a little off every smooth law: cells of one size miss together. Draws perturb whole sizes and tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.floor_fit import Moved, fit_floor, refit_floors
from metaopt_hpo.scaling.fitting.ordered import splits
from metaopt_hpo.scaling.fitting.solver import Solution
from metaopt_hpo.scaling.forms.floor import PRIOR, Floor, log_loss_of_draws
from metaopt_hpo.scaling.forms.surface import Array

LEVEL_ERROR = 2e-3
"""Standard deviation (ln loss) of a whole size about a smooth floor.

About what is left of sizes in fits to all of the two tables measured here (0.1 to 0.4 %)."""

LEVELS = {"size": LEVEL_ERROR, "tokens": 0.5 * LEVEL_ERROR}
"""The same by axis: tokens change no architecture, and what is left of them in those fits is half as much."""

DOUBLING_ERROR = {"size": 3.5e-3, "tokens": 1e-3}
"""Standard deviation (ln loss) by which the floor leaves its law over each doubling beyond the fitted range, steps that
add up as a random walk: the likeliest for what small designs of two tables miss, either table counting once. Alone
Step Law's designs want 5e-3 and 2e-3 and OpenEuroLLM's none beside `LEVELS` (docs/studies/laws/README.md has what each
covers)."""

PSEUDO_LEVELS = 3.0
"""Held-out levels that `LEVELS` counts for against those that ordered validation measured."""

CALIBRATION_DRAWS = 30
"""Draws of each leave-one-level-out fit that calibrates `LEVELS`: its variance is known to a quarter."""

DRAW_STEPS = 12
"""Iterations of a draw's fit, which begins at the point estimate."""


def own_error(floor: Floor, domain: Domain, size: float, tokens: float) -> float:
    """Standard deviation of a cell's ln loss about the floor beside the draws'.

    Its own, its size's and its tokens', and how far the whole floor may have wandered beyond what was fitted.
    """
    variance = level_variance(floor)
    for name, value in (("size", size), ("tokens", tokens)):
        if name in floor.names:
            low, high = getattr(domain, name)
            variance += DOUBLING_ERROR[name] ** 2 * max(math.log2(value / high), math.log2(low / value), 0.0)
    return math.sqrt(variance)


def level_variance(floor: Floor) -> float:
    """Variance (ln loss) of a cell within the fitted range about the floor: its own, its size's and its tokens'."""
    return floor.scatter**2 + math.fsum(LEVELS[name] ** 2 for name in floor.names)


@dataclass(frozen=True)
class Doubt:
    """What one draw of a floor starts from: how far each cell's ln loss was moved, and the prior drawn anew."""

    moved: Array
    prior: dict[str, tuple[float, float]]


def draw_doubt(
    floor: Floor,
    size: Array,
    tokens: Array,
    rng: np.random.Generator,
    *,
    prior: Mapping[str, tuple[float, float]] = PRIOR,
    scale: float = 1.0,
) -> Doubt:
    """Whole sizes and whole numbers of tokens moved by `scale` times `LEVELS`, exponents' and γ's priors drawn anew."""
    moved = np.zeros(size.size)
    for name, values in (("size", size), ("tokens", tokens)):
        if name in floor.names:
            _, which = np.unique(values, return_inverse=True)
            moved += scale * LEVELS[name] * rng.standard_normal(which.max() + 1)[which]
    drawn = {
        name: (mean if name.startswith("share") else mean + sd * rng.standard_normal(), sd)
        for name, (mean, sd) in prior.items()
    }
    return Doubt(moved, drawn)


def draw_floors(
    floor: Floor,
    size: Array,
    tokens: Array,
    log_loss: Array,
    weight: Array,
    doubts: Sequence[Doubt],
    moved: Moved | None = None,
) -> Array:
    """`Floor.parameters` of floors fitted to cells moved by each doubt, one row a draw.

    Args:
        floor: fitted to these cells.
        size, tokens: one value a cell.
        log_loss, weight: one value a cell, or (draws × cells).
        doubts: one a draw.
        moved: further coordinates that move ln loss, as `floor` was fitted with.
    """
    perturbed = log_loss + np.array([d.moved for d in doubts])
    start = dataclasses.replace(floor, scatter=max(floor.scatter, LEVEL_ERROR))
    return refit_floors(
        start,
        np.log(size),
        np.log(tokens),
        perturbed,
        np.broadcast_to(weight, perturbed.shape),
        [d.prior for d in doubts],
        steps=DRAW_STEPS,
        moved=moved,
    )


def loss_factor(
    cells: Cells,
    solution: Solution,
    names: tuple[str, ...],
    seed: int,
    *,
    prior: Mapping[str, tuple[float, float]] = PRIOR,
) -> float:
    """By how much ordered validation widens the spread of draws: root mean square error over spread, at least 1.

    One held-out size, or number of tokens, is one observation, for its cells miss together; those of an axis are
    weighed against `PSEUDO_LEVELS` that agree with the spread, and the worse axis counts. Never narrowed: that an
    axis was easy says nothing of the next.
    """
    rng = np.random.default_rng(seed)
    weight, worst = cells.cell_weight(), 1.0
    for name in names:
        ratios = []
        values = cells.cell_size if name == "size" else cells.cell_tokens
        for train, test in splits(values, 2):
            if train.sum() < 2 + len(names):
                continue
            size, tokens, z = cells.cell_size[train], cells.cell_tokens[train], solution.floors[train]
            floor = fit_floor(
                names, np.log(size), np.log(tokens), z, weight[train], noise=solution.scale, prior=prior
            )
            doubts = [draw_doubt(floor, size, tokens, rng, prior=prior) for _ in range(CALIBRATION_DRAWS)]
            draws = draw_floors(floor, size, tokens, z, weight[train], doubts)
            own = level_variance(floor)
            squares = []
            for j in np.flatnonzero(test):
                at = float(cells.cell_size[j]), float(cells.cell_tokens[j])
                error = float(solution.floors[j] - floor.log_loss(*at))
                spread = log_loss_of_draws(draws, floor, *at) - float(floor.log_loss(*at))
                squares.append(error**2 / (float(np.mean(spread**2)) + own))
            ratios.append(min(float(np.mean(squares)), 9.0))
        worst = max(worst, (math.fsum(ratios) + PSEUDO_LEVELS) / (len(ratios) + PSEUDO_LEVELS))
    return math.sqrt(worst)
