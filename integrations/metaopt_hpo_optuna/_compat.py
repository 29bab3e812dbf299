"""The only room where private names of Optuna are used; read from 4.9 and 5.0."""

from __future__ import annotations

from typing import Any

import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import func, select


def storage_of(study: Study) -> BaseStorage:
    """The storage behind a study."""
    return study._storage


def study_id(study: Study) -> int:
    """The study's id within its storage."""
    return study._study_id


def trials_at_ask(study: Study) -> list[FrozenTrial]:
    """All trials as they were when the present trial began: read once a trial, as Optuna's samplers do."""
    return study._get_trials(deepcopy=False, use_cache=True)


def ended_count(study: Study) -> int | None:
    """The number of completed, pruned and failed trials, where that is to be had without reading running trials again.

    Optuna's relational storage reads every report of every running trial at each `get_trials`; one COUNT tells
    whether anything has ended since. None on other storages, and where the table is not as expected.
    """
    backend = getattr(study._storage, "_backend", study._storage)
    engine = getattr(backend, "engine", None)
    if engine is None:
        return None
    trial = models.TrialModel
    ended = trial.state.in_((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    query = select(func.count()).select_from(trial).where(trial.study_id == study._study_id, ended)
    try:
        with engine.connect() as connection:
            return int(connection.execute(query).scalar_one())
    except sqlalchemy.exc.ProgrammingError:
        return None


def table_columns() -> dict[str, frozenset[str]]:
    """Columns of each table that this Optuna makes in a new database, by the table's name."""
    tables = models.BaseModel.metadata.tables
    return {name: frozenset(table.columns.keys()) for name, table in tables.items()}


def stored(trial: Trial) -> FrozenTrial:
    """The trial as it stands in the storage, with what other processes and the pruner wrote."""
    return trial.storage.get_trial(trial._trial_id)


def resumed(study: Study, trial: FrozenTrial) -> Trial:
    """A live handle on a running trial of this study, whose process is gone."""
    return Trial(study, trial._trial_id)


def write_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a user attribute of a running trial from a pruner or sampler, which only hold a copy of it."""
    storage_of(study).set_trial_user_attr(trial._trial_id, key, value)


def write_live_attr(trial: Trial, key: str, value: Any) -> None:
    """Set a user attribute of a live trial in the storage only, from another thread than the trial's."""
    trial.storage.set_trial_user_attr(trial._trial_id, key, value)


def write_system_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a system attribute of a running trial, as Optuna's pruners do."""
    storage_of(study).set_trial_system_attr(trial._trial_id, key, value)


def write_param(
    study: Study, trial: FrozenTrial, name: str, value: float, distribution: BaseDistribution
) -> None:
    """Enter a parameter of a running trial in the storage, as `Trial.suggest_float` does."""
    internal = distribution.to_internal_repr(value)
    storage_of(study).set_trial_param(trial._trial_id, name, internal, distribution)
