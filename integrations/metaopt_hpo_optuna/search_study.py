"""The study of a search: what it was made for, and the error where a store holds another's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.study import Study
from sqlalchemy.exc import SQLAlchemyError

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record_json import plain
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo_optuna.proposers import make_pruner
from metaopt_hpo_optuna.store import open_store

TASK = "metaopt:task"
"""Study user attribute: the task the study belongs to."""


def open_study(method: Method, task: SearchTask, store: str | None, name: str) -> Study:
    fingerprint = _fingerprint(method, task)
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
            study.set_user_attr(TASK, fingerprint)
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
    elif attributes[TASK] != fingerprint:
        saved = attributes[TASK] if isinstance(attributes[TASK], dict) else {}
        changed = sorted(k for k in fingerprint if saved.get(k) != fingerprint[k])
        raise EngineError(
            f"study {name!r} in {store} belongs to another task (other {', '.join(changed)}); "
            "choose another store or study name, or repeat the settings it was started with"
        )
    return study


def _fingerprint(method: Method, task: SearchTask) -> dict[str, Any]:
    """What a study must have been started with to be resumed; anything that a proposal depends on."""
    evidence = [[r.study, r.trial, r.size, r.lr, r.loss] for r in task.evidence]
    return {
        "method": method.name,
        "objective": task.objective.name,
        "size": float(task.size),
        "tokens": float(task.tokens),
        "batch": float(task.batch),
        "lr_bounds": [float(b) for b in task.lr_bounds],
        "budget": float(task.budget),
        "seed": int(task.seed),
        "strategy": task.strategy,
        "options": plain(dict(task.options)),
        "evidence": json.dumps(plain(evidence)),
    }


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's log line per trial would break a progress display; errors still show."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
