"""Optuna's storages as tables: `TrialTable.read("sqlite:///study.db")`, a journal file, or the database's file.

Registered under the entry points `metaopt_hpo.readers`, so that the package itself imports no Optuna.
"""

from __future__ import annotations

import json
import math
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from metaopt_hpo.errors import MetaOptError, MetaOptWarning
from metaopt_hpo.trials.readers.base import Export, Reader, one_frame
from metaopt_hpo.trials.schema import Note, TableError
from metaopt_hpo_optuna.study_table import STATES, trial_table

DATABASES = ("sqlite", "mysql", "postgresql")


def recognises(path: str) -> bool:
    """A database's URL, a SQLite file with Optuna's tables, or a journal of its operations."""
    if "://" in path:
        scheme = path.split("://", 1)[0].split("+", 1)[0]
        return scheme in DATABASES and (scheme != "sqlite" or _has_studies(Path(path.split("///", 1)[-1])))
    file = Path(path)
    return file.is_file() and (_has_studies(file) or _is_journal(file))


def read(path: str) -> Export:
    """The trials of the storage's studies: as `trial_table` reads them, else by their parameters and attributes."""
    storage = _storage(path)
    names = optuna.get_all_study_names(storage)
    if not names:
        raise TableError(f"the storage {path!r} holds no studies")
    frames = []
    notes: list[Note] = []
    for name in names:
        study = optuna.load_study(study_name=name, storage=storage)
        if len(study.directions) > 1:
            notes.append(Note("left-out", 1, f"study {name!r} has several objectives and was left out"))
            continue
        frame = _frame(study)
        if frame is not None:
            frames.append(frame)
    if not frames:
        raise TableError(f"no study of {path!r} has trials with a single objective")
    title = f"Optuna storage, {'study ' + repr(names[0]) if len(names) == 1 else f'{len(names)} studies'}"
    return Export(
        title,
        one_frame(pd.concat(frames, ignore_index=True)),
        settings=("params.", "user_attrs."),
        engine="optuna",
        notes=tuple(notes),
    )


def _frame(study: optuna.Study) -> pd.DataFrame | None:
    started = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
    if not started:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetaOptWarning)
            table = trial_table(study)
        if len(table) == len(started):
            return table.frame
    except (MetaOptError, ValueError):  # other names: left to the one who reads
        pass
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    rows: list[dict[str, Any]] = []
    for trial in started:
        last = max(trial.intermediate_values, default=None)
        value = (
            trial.value if trial.value is not None else trial.intermediate_values.get(last) if last else None
        )
        row: dict[str, Any] = {
            "trial": str(trial.number),
            "study": study.study_name,
            "state": STATES[trial.state],
            "loss": math.nan if value is None else sign * value,
            "direction": "maximize" if sign < 0 else "minimize",
            "seconds": math.nan if trial.duration is None else trial.duration.total_seconds(),
        }
        row |= {f"params.{k}": v for k, v in trial.params.items()}
        row |= {
            f"user_attrs.{k}": v
            for k, v in trial.user_attrs.items()
            if isinstance(v, int | float | str | bool)
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _storage(path: str) -> BaseStorage:
    if "://" not in path and _is_journal(Path(path)):
        return JournalStorage(JournalFileBackend(path))
    url = path if "://" in path else f"sqlite:///{path}"
    try:
        return optuna.storages.get_storage(url)
    except Exception as e:  # whatever the database's driver raises
        raise TableError(f"cannot open the Optuna storage {path!r}: {str(e).splitlines()[0]}") from e


def _has_studies(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            if stream.read(16) != b"SQLite format 3\0":
                return False
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            found = connection.execute(
                "select count(*) from sqlite_master where name in ('studies', 'trials')"
            )
            return bool(found.fetchone()[0] == 2)
        finally:
            connection.close()
    except (OSError, sqlite3.Error):
        return False


def _is_journal(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as stream:
            first = json.loads(stream.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "op_code" in first


READER = Reader("optuna", recognises, read)
