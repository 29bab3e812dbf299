"""Grids whose causes are known, because they were planted."""

from __future__ import annotations

import numpy as np

from metaopt_hpo.attribution import CRITERIA, IDEAL, ExperimentConfig, GridResult, WorldRuns
from metaopt_hpo.attribution.levels import factorial

CONFIG = ExperimentConfig(factors=("schedule", "init", "warmup"), levels=False, seeds=(0, 1, 2, 3))


def planted_runs(
    effects, *, config, noise=0.0, factors=("schedule", "init", "warmup"), edge=None, rising=False
):
    """Grids whose optimum lies on a plane that each practice level tilts by a known amount in x."""
    d, b = config.cells
    cube = factorial(factors)
    lr = np.exp(np.linspace(-9, 3, 13))[None, :] * (b / d)[:, None] ** 0.5
    if edge is not None:
        lr = lr[:, :edge]
    rng = np.random.default_rng(0)
    criteria = np.empty((len(d), len(cube), lr.shape[1], len(config.seeds), 4))
    for i, s in enumerate(cube):
        for j, name in enumerate(CRITERIA):
            x = -0.5 + sum(effects.get(f, 0.0) for f in factors if getattr(s, f) != getattr(IDEAL, f))
            x += effects.get("criterion", 0.0) * (name in ("final-loss", "tail-loss"))
            best = -3 + x * np.log(d / 2**13) + 0.5 * np.log(b / 2**4) - 0.5 * np.log(2**9)
            jitter = noise * rng.standard_normal((len(d), 1, len(config.seeds)))
            criteria[:, i, :, :, j] = np.exp(
                0.1 * (np.log(lr)[:, :, None] - best[:, None, None] - jitter) ** 2
            )
    growth = np.full(criteria.shape[:-1], 2.0 if rising else 0.5)
    return WorldRuns((GridResult("planted", d, b, lr, tuple(cube), config.seeds, criteria, growth),))
