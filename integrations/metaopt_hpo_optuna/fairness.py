"""Asks a study's pruner about a trial, with only those trials in sight that it may fairly be compared with.

Optuna's pruners compare running losses at equal steps. A run that finds its own learning rate starts low and cools
down late, so until its end it stands above runs that were tuned, and would be stopped whether or not it wins; a
warm-up–stable–decay schedule does so until its decay. So a trial is compared with trials of its own strategy at any
time, and with others once both are comparable (`scaling.policy.stopping.comparable`). Pruners with absolute bounds
see everything.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, ThresholdPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo.scaling.policy.stopping import comparable
from metaopt_hpo.trials.steps import tokens_of
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import comparable_from, planned_of, strategy_of

Keep = Callable[[FrozenTrial], bool]


def should_prune(trial: Trial) -> bool:
    """What the pruner of the trial's study says of it, as `trial.should_prune()` but for fairness."""
    study = trial.study
    if getattr(study.pruner, "compares_fairly", False):
        return trial.should_prune()  # it asks the pruner it wraps through `prune`
    return prune(study.pruner, study, _compat.stored(trial))


def prune(pruner: BasePruner, study: Study, trial: FrozenTrial) -> bool:
    """What `pruner` says of a trial beside the trials it may be compared with."""
    if isinstance(pruner, NopPruner):
        return False
    strategy = strategy_of(trial)
    if not strategy or isinstance(pruner, ThresholdPruner):
        return bool(pruner.prune(study, trial))
    fraction = _fraction(trial)
    own = comparable_from(trial)

    def fair(other: FrozenTrial) -> bool:
        return other.number == trial.number or comparable(
            strategy, own, strategy_of(other), comparable_from(other), fraction
        )

    if all(fair(t) for t in _compat.trials_at_ask(study)):
        return bool(pruner.prune(study, trial))
    return bool(pruner.prune(_view(study, pruner, fair), trial))


def _fraction(trial: FrozenTrial) -> float:
    """Part of its planned tokens that a trial has reported; 0 where it does not say what was planned."""
    planned = planned_of(trial)
    return 0.0 if planned is None or trial.last_step is None else tokens_of(trial.last_step) / planned


def _view(study: Study, pruner: BasePruner, keep: Keep) -> Study:
    """The study with only the trials that `keep` keeps, for reading."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage: Any = _SomeTrials(_compat.storage_of(study), keep)
        return Study(study.study_name, storage, sampler=study.sampler, pruner=pruner)
    finally:
        optuna.logging.set_verbosity(verbosity)


class _SomeTrials:
    """A storage that shows some of its trials; everything else is the storage's own."""

    def __init__(self, storage: Any, keep: Keep) -> None:
        self._storage = storage
        self._keep = keep

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those trials of a study that are kept."""
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [t for t in trials if self._keep(t)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best of them."""
        return optuna.storages.BaseStorage.get_best_trial(self, study_id)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
