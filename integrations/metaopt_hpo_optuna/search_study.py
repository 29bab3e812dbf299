"""The study of a search: what it was made for, and the error where a store holds another's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.study import Study
from sqlalchemy.exc import SQLAlchemyError

from metaopt_hpo.comparison.engine import EngineError, SearchTask, changed_facts, facts_of
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo_optuna.proposers import make_pruner
from metaopt_hpo_optuna.store import open_store

TASK = "metaopt:task"
"""Study user attribute: the task the study belongs to."""


def open_study(method: Method, task: SearchTask, store: str | None, name: str) -> Study:
    facts = facts_of(method, task)
    try:
        storage = open_store(store)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            pruner=make_pruner(method, task),
            load_if_exists=True,
        )
        trials, attributes = study.get_trials(deepcopy=False), study.user_attrs
        if not trials and TASK not in attributes:
            study.set_user_attr(TASK, facts)
    except SQLAlchemyError as error:
        raise EngineError(
            f"the store {store} cannot be used: {str(getattr(error, 'orig', None) or error).splitlines()[0]}"
        ) from error
    except (KeyError, json.JSONDecodeError, TableError) as error:
        raise EngineError(f"the store {store} is damaged: {error!r}") from error
    if TASK not in attributes:
        if trials:
            raise EngineError(
                f"study {name!r} in {store} was not made by a comparison; choose another store or study name"
            )
    elif changed := changed_facts(facts, attributes[TASK]):
        raise EngineError(
            f"study {name!r} in {store} belongs to another task (other {', '.join(changed)}); "
            "choose another store or study name, or repeat the settings it was started with"
        )
    return study


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's log line per trial would break a progress display; errors still show."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
