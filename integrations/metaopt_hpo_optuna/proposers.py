"""What each method of a comparison proposes next, in Optuna's terms: a sampler and pruner, or a point of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo.comparison.budget import (
    REDUCTION,
    before_median,
    first_rung,
    grid_in_budget,
    proposal_seed,
    random_first,
    starts_of,
)
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record_json import plain
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import RECORD, record_from_json
from metaopt_hpo_optuna.resuming import draw_again


@dataclass(frozen=True)
class Proposal:
    """The next trial: `lr` is fixed, or None where the study's sampler chooses it within `bounds`."""

    bounds: tuple[float, float]
    lr: float | None = None
    strategy: str | None = None
    searched: bool = True
    """False where lr is a start rather than a hyperparameter; it is then an attribute, not a parameter."""
    flat: bool = False
    """Suggest a second parameter that nothing depends on; CMA-ES is not defined in one dimension."""

    @property
    def likely_lr(self) -> float:
        """The lr, or a typical one where the sampler will choose: enough to tell what a trial costs."""
        return math.sqrt(self.bounds[0] * self.bounds[1]) if self.lr is None else self.lr

    def start(self, study: Study, begun: FrozenTrial | None = None) -> tuple[Trial, float]:
        """A trial and its learning rate, which is entered in the trial.

        Args:
            begun: the trial of this very proposal that an interrupted process left, to be taken up again.
        """
        low, high = self.bounds
        if begun is None and self.lr is not None and self.searched:
            # an enqueued value shows as a parameter in Optuna's own tools
            study.enqueue_trial({"lr": min(max(self.lr, low), high)})
        running = begun is not None and begun.state == TrialState.RUNNING
        if running and begun is not None and begun.params and "lr" not in begun.params:
            again = draw_again(study, begun, low, high)
            _compat.write_param(study, begun, "lr", again, FloatDistribution(low, high, log=True))
        trial = _compat.resumed(study, begun) if running and begun is not None else study.ask()
        if self.lr is not None and not self.searched:
            trial.set_user_attr("lr", plain(self.lr))
            return trial, self.lr
        if self.flat:
            trial.suggest_float("unused", 0.0, 1.0)
        return trial, trial.suggest_float("lr", low, high, log=True)


class Proposer(Protocol):
    """Makes proposals; `made` counts those that were run to their end or pruned."""

    def propose(self, study: Study, made: int) -> Proposal | None:
        """The next proposal, or None when there is none left."""
        ...


class GridProposer:
    """A log-spaced grid of as many points as the budget pays for."""

    def __init__(self, method: Method, task: SearchTask) -> None:
        self._bounds = task.lr_bounds
        self._point = grid_in_budget(task)

    def propose(self, study: Study, made: int) -> Proposal | None:
        lr = self._point(made)
        return None if lr is None else Proposal(self._bounds, lr=lr)


class StartsProposer:
    """A self-tuning strategy from one start after another."""

    def __init__(self, method: Method, task: SearchTask) -> None:
        self._strategy = method.strategy
        self._bounds = task.lr_bounds
        self._start = starts_of(method)

    def propose(self, study: Study, made: int) -> Proposal | None:
        return Proposal(self._bounds, lr=self._start(made), strategy=self._strategy, searched=False)


class SamplerProposer:
    """An Optuna sampler, made anew for each trial from the seed and the trial's number.

    A sampler that lived on would repeat its first draws when a search is resumed.
    """

    def __init__(self, method: Method, task: SearchTask) -> None:
        self._task = task
        self._make = SAMPLERS[method.name]
        self._startup = random_first(task)
        self._flat = method.name == "cmaes"

    def propose(self, study: Study, made: int) -> Proposal | None:
        study.sampler = self._make(proposal_seed(self._task, made), self._startup)
        return Proposal(self._task.lr_bounds, flat=self._flat)


class LawProposer:
    """The lr a law of smaller models predicts, then draws from where the search's own runs leave the optimum."""

    def __init__(self, method: Method, task: SearchTask) -> None:
        from metaopt_hpo.comparison.law_search import TargetSearch

        self._bounds = task.lr_bounds
        self._search = TargetSearch(task)

    def propose(self, study: Study, made: int) -> Proposal | None:
        own = [
            record_from_json(t.user_attrs[RECORD])
            for t in study.get_trials(deepcopy=False)
            if RECORD in t.user_attrs and t.state != TrialState.FAIL
        ]
        return Proposal(self._bounds, lr=self._search.propose(own))


def _cmaes(seed: int) -> BaseSampler:
    if find_spec("cmaes") is None:
        raise EngineError(
            "method 'cmaes' needs the package 'cmaes'; run: pip install \"metaopt-hpo[baselines]\""
        )
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _tpe(seed: int, startup: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=startup)


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "tpe": _tpe,
    "gp": lambda seed, startup: GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False),
    "cmaes": lambda seed, startup: _cmaes(seed),
    "median": _tpe,
    "hyperband": _tpe,
    "asha": lambda seed, startup: RandomSampler(seed=seed),
}

PROPOSERS: dict[str, Callable[[Method, SearchTask], Proposer]] = {
    "grid": GridProposer,
    "metaoptimize": StartsProposer,
    "law": LawProposer,
    **dict.fromkeys(SAMPLERS, SamplerProposer),
}


def make_pruner(method: Method, task: SearchTask, first: int | None = None) -> BasePruner:
    """The pruner of a method; steps are tokens, the first at which it judges is `first` (default: the first rung)."""
    first = first_rung(task.tokens) if first is None else first
    if method.name == "median":
        return MedianPruner(n_startup_trials=before_median(task), n_warmup_steps=first)
    if method.name == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=int(task.tokens), reduction_factor=REDUCTION)
    if method.name == "asha":
        return SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=REDUCTION, min_early_stopping_rate=0
        )
    return NopPruner()
