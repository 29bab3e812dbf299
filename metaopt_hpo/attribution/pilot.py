"""Learning-rate grids: a pilot finds where the optima lie, and an edge that cuts one off moves outwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.levels import CRITERIA, Setting
from metaopt_hpo.attribution.stepping import GridResult, World, run_grid
from metaopt_hpo.theory.minima import log_parabola

PILOT_LR = 2.0 ** np.arange(-16, 8)
"""Range of the pilot: covers everything from a frozen run to one that jumps across the whole problem."""
GRID_RATIO = 2.0
"""Ratio of neighbouring learning rates: the log-parabola resolves far below it."""
MARGIN = 1.5
"""How far beyond the pilot's optima the grid reaches, in ratios."""


def pilot_grid(world: World, settings: Sequence[Setting], config: ExperimentConfig) -> np.ndarray:
    """Learning rates (cells, lrs) around the optima of a pilot, so that few are censored.

    The pilot's four cells lie at the ends of the budgets, and at the largest and a middle batch: the smallest would
    cost most of it, and ln η* is nearly linear in ln B, so that a plane through a setting's four optima reaches there.
    """
    d, b = config.cells
    middle = b[b <= np.sqrt(b.min() * b.max()) * (1 + 1e-9)].max()
    corners = np.array([(x, y) for x in (d.min(), d.max()) for y in (middle, b.max())])
    chosen = list(dict.fromkeys([settings[0], settings[-1], *(s for s in settings if s.a == 1.0)]))
    chosen += [s for s in settings if s.schedule != "constant" and s not in chosen][:1]
    pilot = run_grid(
        world,
        chosen,
        tokens=corners[:, 0].tolist(),
        batch=corners[:, 1].tolist(),
        lr=np.tile(PILOT_LR, (4, 1)),
        seeds=config.seeds[:2],
        device=config.device,
    )
    optima = []
    for criterion in CRITERIA:
        found = [log_parabola(np.log(PILOT_LR), np.log(pilot.of([s], criterion).mean(-1))) for s in chosen]
        # A criterion that prefers the lowest lr of all wants an idle run: no grid holds its optimum, so none is laid.
        if not any(np.isneginf(f.low).any() for f in found):
            optima += [0.5 * (f.low + np.where(np.isinf(f.high), f.low, f.high)) for f in found]
    if not optima or not np.isfinite(optima).all():
        raise AttributionError(
            f"no criterion of {world.name} has an optimum above the lowest lr, {PILOT_LR[0]:g}: it learns nothing"
        )

    def design(cells: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(cells)), np.log(cells)])

    planes = np.linalg.lstsq(design(corners), np.transpose(optima), rcond=None)[0]
    centre = np.median(planes, axis=1)
    ends = design(np.array([(x, y) for x in (d.min(), d.max()) for y in (b.min(), b.max())]))
    away = ends @ (planes - centre[:, None])
    step = np.log(GRID_RATIO)
    low, high = away.min() - MARGIN * step, away.max() + MARGIN * step
    offsets = np.arange(low, high + step, step)
    return np.asarray(np.exp((design(np.column_stack([d, b])) @ centre)[:, None] + offsets))


def beyond(grid: GridResult) -> np.ndarray | None:
    """Learning rates (cells, 2) past an edge at which a loss is lowest somewhere; None where no optimum is cut off."""
    losses = np.stack([grid.of([s], c).mean(-1) for s in grid.settings for c in ("final-loss", "tail-loss")])
    best = np.argmin(losses, axis=-1)
    ratio = GRID_RATIO ** np.array([1.0, 2.0])
    if (best == losses.shape[-1] - 1).any():
        return np.asarray(grid.lr[:, -1:] * ratio)
    return np.asarray(grid.lr[:, :1] / ratio[::-1]) if (best == 0).any() else None
