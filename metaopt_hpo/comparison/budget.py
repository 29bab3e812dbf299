"""What a budget pays for, when rungs judge, and the lrs that follow from a budget alone: the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import numpy as np

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import Method, grid_points, starts

RUNGS = 3
"""Hyperband and ASHA judge first after `REDUCTION`^-RUNGS of a run."""

REDUCTION = 3
"""Reduction factor of Hyperband and ASHA, their papers' default."""

STARTUP_FRACTION = 3
"""Model-based methods draw a third of the full runs the budget pays for at random. TPE's own default of ten would make
it random search at the small budgets where large models are tuned."""

SLACK = 1e-9
"""Relative slack of the budget: sums of equal costs differ from their product in the last digits."""


def limit_of(task: SearchTask) -> float:
    """FLOPs that a search may spend."""
    return task.budget * (1 + SLACK)


def runs_in_budget(task: SearchTask) -> int:
    """Full runs that fit in what the evidence has left of the budget."""
    left = task.budget - math.fsum(r.cost for r in task.evidence)
    cost = task.objective.cost(task.configuration(task.lr_bounds[0]))
    return max(0, math.floor(left / cost * (1 + SLACK)))


def random_first(task: SearchTask) -> int:
    """Trials that a model-based method draws at random before it has a model."""
    return max(2, math.ceil(runs_in_budget(task) / STARTUP_FRACTION))


def before_median(task: SearchTask) -> int:
    """Trials before median pruning stops any."""
    return max(2, runs_in_budget(task) // STARTUP_FRACTION)


def first_rung(tokens: float) -> int:
    """Tokens at which a run is judged first."""
    return int(max(1, int(tokens) // REDUCTION**RUNGS))


def proposal_seed(task: SearchTask, made: int) -> int:
    """A seed for one proposal: a function of the task's seed and the proposal's number alone."""
    return int(np.random.SeedSequence([task.seed & 0xFFFFFFFF, made]).generate_state(1)[0])


def random_lr(task: SearchTask, made: int) -> float:
    """The lr of one proposal, log-uniform in its range; a function of what `proposal_seed` is."""
    low, high = task.lr_bounds
    return float(low * (high / low) ** np.random.default_rng(proposal_seed(task, made)).random())


def grid_in_budget(task: SearchTask) -> Callable[[int], float | None]:
    """Proposal's number → lr of a log-spaced grid of as many points as the budget pays for, then None."""
    count = runs_in_budget(task)
    points = grid_points(*task.lr_bounds, count) if count else []
    return lambda made: points[made] if made < len(points) else None


def starts_of(method: Method) -> Callable[[int], float]:
    """Proposal's number → start of a self-tuning method's strategy."""
    from metaopt_hpo.strategies import get

    assert method.strategy is not None
    default = get(method.strategy)().lr
    return lambda made: next(islice(starts(default), made, None))
