"""Law-guided search for (lr, batch) at a target size: a few cheap pilots, a fit, then the target itself.

A generator of configurations that is sent the loss of each, so that it runs on tables and on real training
alike. The pilots form an L: the smallest size at every number of tokens (how the optimum moves with tokens) and
every size at the fewest (how it moves with size), because those are cheapest per cell.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.cells import make_cells
from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.pointfit import PointFit, point_fit
from metaopt_hpo.scaling.policy import Config, spread_points

Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LawSearchOptions:
    """Settings; one set for every table.

    Attributes:
        rounds: runs in each pilot cell.
        scattered: of these, how many are spread over the whole range; later ones lie around the optimum that a
            fit to all pilots so far predicts.
        reach: half-width in ln lr and ln batch of that neighbourhood.
        scatter: standard deviation, ln units, of a cell's true optimum about the law.
    """

    rounds: int = 10
    scattered: int = 3
    reach: float = 0.9
    scatter: float = 0.3


@dataclass(frozen=True)
class LawSearchTask:
    """What is searched: a target, the pilot cells that may be run, and bounds."""

    target: tuple[float, float]
    pilots: tuple[tuple[float, float], ...]
    lr: Bounds
    batch: Bounds
    seed: int = 0


def pilot_cells(cells: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The L: each size at its fewest tokens, and the smallest size at all its tokens; cheapest first."""
    smallest = min(s for s, _ in cells)
    fewest = {s: min(t for z, t in cells if z == s) for s, _ in cells}
    chosen = {(s, t) for s, t in cells if s == smallest or t == fewest[s]}
    return tuple(sorted(chosen, key=lambda c: c[0] * c[1]))


def law_search(
    task: LawSearchTask, options: LawSearchOptions | None = None
) -> Generator[Config, tuple[Config, float], None]:
    """Configurations to run; send (what was run, its loss) for each. Never ends on its own.

    What was run may differ from what was proposed (a table knows only what lies between its runs).
    """
    options = options or LawSearchOptions()
    seen: list[tuple[Config, float]] = []
    cells = pilot_cells(task.pilots)
    scatter = {c: spread_points(options.rounds, task.seed * 1009 + i) for i, c in enumerate(cells)}
    for k in range(options.rounds):
        fit = _fit(seen) if k >= options.scattered else None
        for cell in cells:
            u, v = scatter[cell][k]
            if fit is None:
                config = Config(*cell, _between(task.batch, v), _between(task.lr, u))
            else:
                x, y = fit.centre(*cell)
                reach = options.reach
                lr = math.exp(x + reach * (2 * u - 1))
                config = Config(
                    *cell, _clip(math.exp(y + reach * (2 * v - 1)), task.batch), _clip(lr, task.lr)
                )
            seen.append((yield config))
    rng = np.random.default_rng(task.seed)
    while True:
        fit = _fit(seen)
        at = [(c, loss) for c, loss in seen if (c.size, c.tokens) == task.target]
        x, y = _target_point(task, fit, at, options, rng)
        config = Config(*task.target, _clip(math.exp(y), task.batch), _clip(math.exp(x), task.lr))
        seen.append((yield config))


def _target_point(
    task: LawSearchTask,
    fit: PointFit | None,
    at: list[tuple[Config, float]],
    options: LawSearchOptions,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """(ln lr, ln batch) of the next run of the target: the law's optimum first, then draws of where it really is.

    The target's optimum scatters about the law by `options.scatter`; what its runs so far say is weighed by the
    law's bowl (Thompson sampling on a lattice of shifts).
    """
    if fit is None:
        if at:
            best = min(at, key=lambda r: r[1])[0]
            x, y = math.log(best.lr), math.log(best.batch)
        else:
            x, y = (0.5 * (math.log(b[0]) + math.log(b[1])) for b in (task.lr, task.batch))
        step = options.scatter * rng.standard_normal(2)
        return x + float(step[0]), y + float(step[1])
    x, y = fit.centre(*task.target)
    if not at:
        return x, y
    lattice = np.linspace(-3.0, 3.0, 31) * options.scatter
    dx, dy = (m.ravel() for m in np.meshgrid(lattice, lattice if fit.surface.has_batch else np.zeros(1)))
    z = np.log([loss for _, loss in at])
    u = np.log([c.lr for c, _ in at])[:, None] - x - dx
    v = np.log([c.batch for c, _ in at])[:, None] - y - dy
    residual = z[:, None] - fit.surface.excess(u, v)
    residual = residual - residual.mean(axis=0)
    noise = max(2.0 * fit.scale, 1e-6)
    energy = 0.5 * (residual**2).sum(axis=0) / noise**2 + 0.5 * (dx**2 + dy**2) / options.scatter**2
    p = np.exp(energy.min() - energy)
    i = int(rng.choice(p.size, p=p / p.sum()))
    return x + float(dx[i]), y + float(dy[i])


def _fit(seen: list[tuple[Config, float]]) -> PointFit | None:
    rows = np.array([(c.size, c.tokens, c.batch, c.lr, loss) for c, loss in seen], dtype=float)
    cells = make_cells(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 4])
    try:
        return point_fit(cells)
    except (LawRefused, np.linalg.LinAlgError):
        return None


def _between(bounds: Bounds, u: float) -> float:
    return float(bounds[0] * (bounds[1] / bounds[0]) ** u)


def _clip(value: float, bounds: Bounds) -> float:
    return float(min(max(value, bounds[0]), bounds[1]))
