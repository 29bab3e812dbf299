"""Synchronous HyperBand, PBT and PB2 in Tune's own classes, for a population that `comparison.populations` plans."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import HyperBandScheduler, PopulationBasedTraining, TrialScheduler

from metaopt_hpo.comparison.budget import proposal_seed
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.populations import ETA, Plan, check

TURN = "turn"
"""Result: progress in the unit the scheduler counts in."""

LOG_LR = "log10_lr"
"""Entry of PB2's configs, whose model has no logarithm of its own."""


def check_installed(method: Method, task: SearchTask) -> None:
    """Raise EngineError, before anything runs, where objective or environment cannot do what the method needs."""
    check(method, task)
    if method.name == "pb2":
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise EngineError(
                "method 'pb2' needs scikit-learn, which is not installed; run: pip install scikit-learn"
            ) from error


def told_turns(plan: Plan) -> tuple[float, ...]:
    """What each milestone is called: the last falls short of the end by a half, so that a trial ends by itself and
    nobody halts it, or gives it other weights, when there is nothing left to do."""
    return (*plan.turns[:-1], plan.turns[-1] - 0.5)


def in_tune(method: Method, task: SearchTask, plan: Plan) -> tuple[dict[str, Any], TrialScheduler]:
    """Tune's param_space of a population, and the scheduler made for it."""
    common = asdict(task.configuration(plan.lrs[0]))
    common["options"] = dict(common["options"])
    del common["lr"]
    low, high = task.lr_bounds
    scheduler: TrialScheduler
    name, values = "lr", list(plan.lrs)
    turns: dict[str, Any] = {
        "time_attr": TURN,
        "perturbation_interval": 1,
        "synch": True,
        "log_config": False,
    }
    if method.name == "hyperband-sync":
        scheduler = HyperBandScheduler(time_attr=TURN, max_t=round(plan.turns[-1]), reduction_factor=ETA)
    elif method.name == "pbt":
        scheduler = PopulationBasedTraining(
            **turns,
            hyperparam_mutations={"lr": tune.loguniform(low, high)},
            custom_explore_fn=lambda config: {**config, "lr": min(max(config["lr"], low), high)},
        )
    else:
        from ray.tune.schedulers.pb2 import PB2

        name, values = LOG_LR, [math.log10(lr) for lr in plan.lrs]
        scheduler = PB2(**turns, hyperparam_bounds={LOG_LR: [math.log10(low), math.log10(high)]})
    return {**common, name: tune.grid_search(values)}, scheduler


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
