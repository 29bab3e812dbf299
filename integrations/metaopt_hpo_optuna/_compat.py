"""The only room where private names of Optuna are used; read from 4.9 and 5.0."""

from __future__ import annotations

from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial


def storage_of(study: Study) -> BaseStorage:
    """The storage behind a study."""
    return study._storage


def study_key(study: Study) -> tuple[int, int]:
    """Identity of a study within this process: its storage object and its id there."""
    return id(study._storage), study._study_id


def stored(trial: Trial) -> FrozenTrial:
    """The trial as it stands in the storage, with what other processes and the pruner wrote."""
    return trial.storage.get_trial(trial._trial_id)


def write_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a user attribute of a running trial from a pruner or sampler, which only hold a copy of it."""
    storage_of(study).set_trial_user_attr(trial._trial_id, key, value)


def bare_sampling(study: Study) -> bool:
    """True for the study Hyperband hands to samplers, which lacks most attributes."""
    return type(study).__name__ == "_BracketStudy"
