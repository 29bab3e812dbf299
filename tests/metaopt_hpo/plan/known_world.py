"""Pilots of a world whose best learning rate and loss are known, and a recipe that rests on none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import Cost
from metaopt_hpo.plan.model import Target
from metaopt_hpo.plan.recipe import Basis, Range
from metaopt_hpo.plan.recipes import Recipe
from metaopt_hpo.trials.record import TrialRecord

ONE = Range(value=1e-3, low=5e-4, high=2e-3)
SMALL = Recipe(
    target=Target(size=7e9, tokens=1.4e12),
    lr=ONE,
    batch=Range(value=4e6, low=2e6, high=8e6),
    ramp=((0.0, 1e6), (1e10, 4e6)),
    weight_decay=ONE,
    warmup=1e10,
    cooldown=2.8e11,
    loss=Range(value=2.0, low=1.9, high=2.1),
    within=2.0,
    cost=Cost(flops=5.9e22),
    basis=Basis(runs=6, size=1e8, tokens=2e9, ln_size=4.2, ln_tokens=6.5),
)
TARGET = {"target": 1e9, "tokens": 2e10, "budget": "5 % of the target", "base": []}


def best_lr(size: float, tokens: float) -> float:
    return 3e-3 * (size / 1e7) ** -0.35 * (tokens / 2e8) ** -0.1


def worlds_trials(made: Plan, seed: int = 0, offset: float = 0.0) -> Iterator[TrialRecord]:
    """What the plan's pilots would give in a world whose best lr is known."""
    rng = np.random.default_rng(seed)
    for i, p in enumerate(made.pilots):
        best = best_lr(p.size, p.tokens)
        own = p.strategy == "metaoptimize"
        found = best * math.exp(offset + 0.1 * rng.standard_normal())
        lr = 1e-3 if own else best * (0.5, 1.0, 2.0)[i % 3]
        away = math.log((found if own else lr) / best)
        floor = 1.7 + 400 * p.size**-0.34 + 400 * p.tokens**-0.28
        yield TrialRecord(
            trial=p.name,
            study=p.name,
            strategy=p.strategy,
            tuning="self" if own else "external",
            found_lr=found if own else math.nan,
            lr=lr,
            size=p.size,
            tokens=p.tokens,
            target_tokens=p.tokens,
            batch=p.batch,
            loss=floor * math.exp(0.05 * away**2 + 1e-3 * rng.standard_normal()),
            state="complete",
            seed=p.seed,
        )
