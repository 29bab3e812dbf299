"""Populations of trials that halt and go on together: how many a budget pays for, and to which tokens each may come.

For synchronous HyperBand, PBT and PB2, whoever halts the trials. All of a population are known before the first starts,
so its cost is planned, not asked for trial by trial: the population is the largest whose whole schedule fits in what is
left of the budget. Trials are compared at equal tokens, whatever number of them runs at once: all wait at a milestone
for the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metaopt_hpo.comparison.budget import RUNGS, limit_of, random_lr
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.live import Resumable
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record import TrialRecord

METHODS = ("hyperband-sync", "pbt", "pb2")

ETA = 3
"""Of HyperBand: its paper's, and that of the other halving methods here."""

TURNS = 8
"""Parts of a run between which PBT and PB2 compare: seven exploits a run. Their papers have more, on runs of
many hours; a shorter part here would be shorter than a schedule's warm-up."""


@dataclass(frozen=True)
class Plan:
    """Trials that run together.

    Attributes:
        lrs: their learning rates.
        turns: points at which a trial reports and may be halted, in the scheduler's unit, the last that of a whole run.
        milestones: the tokens of each.
    """

    lrs: tuple[float, ...]
    turns: tuple[float, ...]
    milestones: tuple[float, ...]


def check(method: Method, task: SearchTask) -> None:
    """Raise EngineError, before anything runs, where the objective cannot do what the method needs."""
    from metaopt_hpo.strategies import get
    from metaopt_hpo.strategies.schedules import Schedule

    objective = task.objective
    if not isinstance(objective, Resumable):
        raise EngineError(
            f"method {method.name!r} halts trials and goes on with them, and objective {objective.name!r} knows whole "
            "runs only; give it open(), as metaopt_hpo.comparison.live says, or choose another method"
        )
    if method.name == "hyperband-sync":
        return
    if not objective.changes_lr:
        raise EngineError(
            f"method {method.name!r} changes the learning rate during a run, and objective {objective.name!r} is a "
            "table, which holds no such run; train a workload, or choose another method"
        )
    if not issubclass(get(task.strategy), Schedule):
        raise EngineError(
            f"method {method.name!r} changes the learning rate during a run, and strategy {task.strategy!r} sets its "
            "own step size and keeps it in a checkpoint; choose a schedule such as 'wsd'"
        )


def plan(method: Method, task: SearchTask, done: Sequence[TrialRecord]) -> Plan | None:
    """The next population: the largest that fits in what is left of the budget. None where no trial fits."""
    left = limit_of(task) - math.fsum(r.cost for r in [*task.evidence, *done])
    first = len(done)
    if method.name != "hyperband-sync":
        whole = task.objective.cost(task.configuration(task.lr_bounds[0]))
        lrs = [random_lr(task, first + i) for i in range(math.floor(left / whole))]
        return _plan(task, lrs, [float(k) for k in range(1, TURNS + 1)])
    for rungs in range(RUNGS, 0, -1):
        lrs = _band(task, rungs, left, first)
        if rungs == 1 or len(lrs) >= sum(n for n, _ in brackets(rungs)):
            return _plan(task, lrs, [float(ETA**k) for k in range(rungs + 1)])
    return None


def _plan(task: SearchTask, lrs: Sequence[float], turns: Sequence[float]) -> Plan | None:
    milestones = tuple(task.tokens * t / turns[-1] for t in turns)
    return Plan(tuple(lrs), tuple(turns), milestones) if lrs else None


def brackets(rungs: int) -> list[tuple[int, int]]:
    """(trials, first rung) of each bracket of one band of HyperBand, in the order in which they are filled."""
    return [(math.ceil((rungs + 1) / (s + 1) * ETA**s), rungs - s) for s in range(rungs + 1)]


def _band(task: SearchTask, rungs: int, left: float, first: int) -> list[float]:
    """Learning rates of as many trials as HyperBand of that many rungs can take through its schedule."""
    lrs: list[float] = []
    spent = 0.0
    while True:
        for size, rung in brackets(rungs):
            for count in range(1, size + 1):
                lr = random_lr(task, first + len(lrs))
                more = _bracket_cost(task, rungs, rung, size, [*lrs[len(lrs) - count + 1 :], lr])
                if spent + more > left:
                    return lrs
                lrs.append(lr)
            spent += more


def _bracket_cost(task: SearchTask, rungs: int, rung: int, size: int, lrs: Sequence[float]) -> float:
    """FLOPs of a bracket of `size` places that holds trials of these learning rates: at most this."""
    objective = task.objective
    assert isinstance(objective, Resumable)
    configurations = [task.configuration(lr) for lr in lrs]
    flops = max(objective.cost(c) for c in configurations) / task.tokens
    cost, before, places = 0.0, 0.0, size
    for k in range(rung, rungs + 1):
        milestone = task.tokens * ETA ** (k - rungs)
        at = max(objective.stops_at(c, milestone) for c in configurations)
        cost += min(len(lrs), places) * (at - before) * flops
        before, places = at, math.ceil(places / ETA)
    return cost
