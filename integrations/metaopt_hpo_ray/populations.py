"""Methods that halt trials and go on with them: synchronous HyperBand, PBT and PB2, in Tune's own classes.

All trials of a population are known before the first starts, so its cost is planned, not asked for trial by
trial: the population is the largest whose whole schedule fits in what is left of the budget. Trials are compared
at equal tokens, whatever number of them runs at once: all wait at a milestone for the last.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import HyperBandScheduler, PopulationBasedTraining, TrialScheduler

from metaopt_hpo.comparison.budget import RUNGS, limit_of, proposal_seed
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.live import Resumable
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray.proposers import random_lr

METHODS = ("hyperband-sync", "pbt", "pb2")

ETA = 3
"""Of HyperBand: its paper's, and that of the other halving methods here."""

TURNS = 8
"""Parts of a run between which PBT and PB2 compare: seven exploits a run. Their papers have more, on runs of
many hours; a shorter part here would be shorter than a schedule's warm-up."""

TURN = "turn"
"""Result: progress in the unit the scheduler counts in. That of the last report falls short of the end by a half,
so that a trial ends by itself and nobody halts it, or gives it other weights, when there is nothing left to do."""

LOG_LR = "log10_lr"
"""Entry of PB2's configs, whose model has no logarithm of its own."""


@dataclass(frozen=True)
class Population:
    """Trials that run together.

    Attributes:
        milestones: tokens at which a trial reports and may be halted, ascending, the last those of a whole run.
        turns: what each milestone is called in the scheduler's unit.
        space: Tune's param_space.
        scheduler: made for this population.
    """

    milestones: tuple[float, ...]
    turns: tuple[float, ...]
    space: dict[str, Any]
    scheduler: TrialScheduler


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
    if method.name == "pb2":
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise EngineError(
                "method 'pb2' needs scikit-learn, which is not installed; run: pip install scikit-learn"
            ) from error


def plan(method: Method, task: SearchTask, done: Sequence[TrialRecord]) -> Population | None:
    """The next population: the largest that fits in what is left of the budget. None where no trial fits."""
    assert isinstance(task.objective, Resumable)
    left = limit_of(task) - math.fsum(r.cost for r in [*task.evidence, *done])
    whole = task.objective.cost(task.configuration(task.lr_bounds[0]))
    first = len(done)
    if method.name != "hyperband-sync":
        count = math.floor(left / whole)
        lrs = [random_lr(task, first + i) for i in range(count)]
        turns = tuple(float(k) for k in range(1, TURNS + 1))
        return _population(method, task, lrs, turns) if lrs else None
    for rungs in range(RUNGS, 0, -1):
        band = _count(task, rungs, left, first)
        if rungs == 1 or len(band) >= sum(n for n, _ in _brackets(rungs)):
            turns = tuple(float(ETA**k) for k in range(rungs + 1))
            return _population(method, task, band, turns) if band else None
    return None


def _population(
    method: Method, task: SearchTask, lrs: Sequence[float], turns: tuple[float, ...]
) -> Population:
    assert isinstance(task.objective, Resumable)
    common = asdict(task.configuration(lrs[0]))
    common["options"] = dict(common["options"])
    del common["lr"]
    low, high = task.lr_bounds
    scheduler: TrialScheduler
    name, values = "lr", list(lrs)
    if method.name == "hyperband-sync":
        scheduler = HyperBandScheduler(time_attr=TURN, max_t=round(turns[-1]), reduction_factor=ETA)
    elif method.name == "pbt":
        scheduler = PopulationBasedTraining(
            time_attr=TURN,
            perturbation_interval=1,
            hyperparam_mutations={"lr": tune.loguniform(low, high)},
            custom_explore_fn=lambda config: {**config, "lr": min(max(config["lr"], low), high)},
            synch=True,
            log_config=False,
        )
    else:
        from ray.tune.schedulers.pb2 import PB2

        name, values = LOG_LR, [math.log10(lr) for lr in lrs]
        scheduler = PB2(
            time_attr=TURN,
            perturbation_interval=1,
            hyperparam_bounds={LOG_LR: [math.log10(low), math.log10(high)]},
            synch=True,
            log_config=False,
        )
    milestones = tuple(task.tokens * t / turns[-1] for t in turns)
    return Population(
        milestones,
        (*turns[:-1], turns[-1] - 0.5),
        {**common, name: tune.grid_search(values)},
        scheduler,
    )


def _brackets(rungs: int) -> list[tuple[int, int]]:
    """(trials, first rung) of each bracket of one band, in the order in which Tune fills them."""
    return [(math.ceil((rungs + 1) / (s + 1) * ETA**s), rungs - s) for s in range(rungs + 1)]


def _count(task: SearchTask, rungs: int, left: float, first: int) -> list[float]:
    """Learning rates of as many trials as HyperBand of that many rungs can take through its schedule."""
    lrs: list[float] = []
    spent = 0.0
    while True:
        for size, rung in _brackets(rungs):
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


@contextlib.contextmanager
def seeded(task: SearchTask, number: int) -> Iterator[None]:
    """Tune's population methods draw from the process's global generators: seed them, and put them back."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002  Tune draws from it
    random.seed(proposal_seed(task, number))
    np.random.seed(proposal_seed(task, number))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002
