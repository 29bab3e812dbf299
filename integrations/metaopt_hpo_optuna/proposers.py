"""What each method of a comparison proposes next, in Optuna's terms: a sampler and pruner, or a point of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    proposal_seed,
    random_first,
)
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.proposals import points_of
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import plain
from metaopt_hpo_optuna import _compat
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
    """Makes proposals."""

    def propose(self, study: Study, own: Sequence[TrialRecord]) -> Proposal | None:
        """The next proposal after these trials were run to their end or pruned; None when there is none left."""
        ...


class OwnProposer:
    """Points of the method itself: a grid, starts of a self-tuning strategy, or a law's."""

    def __init__(self, method: Method, task: SearchTask) -> None:
        points = points_of(method, task)
        assert points is not None
        self._points = points
        self._bounds = task.lr_bounds

    def propose(self, study: Study, own: Sequence[TrialRecord]) -> Proposal | None:
        lr, strategy = self._points.at(len(own), own), self._points.strategy
        return None if lr is None else Proposal(self._bounds, lr, strategy, searched=strategy is None)


class SamplerProposer:
    """An Optuna sampler, made anew for each trial from the seed and the trial's number.

    A sampler that lived on would repeat its first draws when a search is resumed.
    """

    def __init__(self, method: Method, task: SearchTask) -> None:
        self._task = task
        self._make = SAMPLERS[method.name]
        self._startup = random_first(task)
        self._flat = method.name == "cmaes"

    def propose(self, study: Study, own: Sequence[TrialRecord]) -> Proposal | None:
        study.sampler = self._make(proposal_seed(self._task, len(own)), self._startup)
        return Proposal(self._task.lr_bounds, flat=self._flat)


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
    **dict.fromkeys(("grid", "metaoptimize", "law"), OwnProposer),
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
