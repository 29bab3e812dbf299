"""An experiment, finished or killed, as a trial table: from its journal, or else from the trials' own files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]
from ray.tune import ResultGrid

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import LogbookError
from metaopt_hpo.trials.logged_results import METRIC, PROGRESS, Results
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.columns import Columns, TuneWarning
from metaopt_hpo_ray.journal import DECISIONS, JOURNAL
from metaopt_hpo_ray.storage import filesystem_of
from metaopt_hpo_ray.trial_files import fill_in_configs, objects, read_text, read_trials


def trial_table(
    source: ResultGrid | str | os.PathLike[str],
    *,
    metric: str = METRIC,
    progress: str = PROGRESS,
    maximize: bool = False,
    size: str | float = "size",
    tokens: str | float = "tokens",
    batch: str | float = "batch",
    lr: str = "lr",
) -> TrialTable:
    """All trials of an experiment that were launched, or refused, as a trial table, with curves and what they cost.

    The journal of a `JournalCallback` is read where there is one; nothing is missing then, whatever was killed.
    Without one the trials' own JSON files are read, and a warning says that Tune may have lost rows of them.
    No pickle is opened.

    Args:
        source: what `Tuner.fit` returned, or the experiment's folder, also of a run that is still going on.
        metric, progress, maximize, size, tokens, batch, lr: as `JournalCallback`.

    Raises:
        TableError: no experiment there, or no trial has all of size, batch and lr.
        LogbookError: the journal is of a newer version.

    Warns:
        TuneWarning: lines of the journal are damaged, or there is none.

    Examples:
        >>> from ray import tune
        >>> from metaopt_hpo_ray import trial_table, tuner_configs
        >>> def train(config):
        ...     for k in range(4, -1, -1):
        ...         seen = config["tokens"] // 2**k
        ...         loss = 3 + (config["lr"] - 0.01) ** 2 + 10 * seen**-0.5
        ...         tune.report({"loss": loss, "tokens_seen": seen})
        ...
        >>> space = {"size": 1e5, "tokens": 2**16, "batch": 512, "lr": tune.grid_search([0.003, 0.01])}
        >>> results = tune.Tuner(train, **tuner_configs(param_space=space)).fit()
        >>> trial_table(results).frame["lr"].tolist()
        [0.003, 0.01]
    """
    columns = Columns(size, tokens, batch, lr)
    files, folder = _place(source)
    journal = f"{folder}/{JOURNAL}"
    study = Path(folder).name
    book: Logbook | None = None
    if files.get_file_info(journal).type == pyarrow.fs.FileType.File:
        try:
            book = Logbook.replay(read_text(files, journal).splitlines())
        except LogbookError as error:
            if "upgrade" in str(error):
                raise
            warnings.warn(f"{journal}: {error}; the trials' own files are read", TuneWarning, stacklevel=2)
    else:
        warnings.warn(
            f"{folder} holds no journal of a JournalCallback, so the trials' own files are read, in which Tune may "
            "have lost rows of trials that were paused or retried; use tuner_configs for the next experiment",
            TuneWarning,
            stacklevel=2,
        )
    results = Results(metric, progress, maximize=maximize)
    if book is None:
        book = read_trials(files, folder, columns, results)
    elif book.damaged:
        lost = fill_in_configs(files, folder, columns, book)
        warnings.warn(
            f"{book.damaged} damaged lines of {journal} were passed over; the rest is read"
            + (f", and the configs of {lost} trials from their own files" if lost else ""),
            TuneWarning,
            stacklevel=2,
        )
    ended = [e for e in book.entries.values() if e.launched or e.closed]
    records = [
        e.record(study=study, maximize=maximize) for e in ended if e.size > 0 and e.batch > 0 and e.lr > 0
    ]
    if not records:
        missing = sorted({name for e in ended for name in e.missing})
        raise TableError(
            f"no trial of {folder} has run with {columns.size!r}, {columns.batch!r} and {columns.lr!r} in its "
            f"config{' (missing: ' + ', '.join(missing) + ')' if missing else ''}; name the entries with size=…, "
            f"batch=…, lr=…, and the result that counts tokens with progress=…"
        )
    return TrialTable.from_records(records)


def decision_log(source: ResultGrid | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every decision of an experiment in order: time, trial, action, reason, and what the law expected.

    `law` is the number of the law that was asked, `predicted` the loss it expected of the trial, `probability` the
    chance it gave it to win. Entries without a trial are fits, and fits that were refused.

    Raises:
        TableError: no experiment there, or nothing was decided by a law in it.

    Examples:
        >>> from ray import tune
        >>> from metaopt_hpo_ray import decision_log, tuner_configs
        >>> def train(config):
        ...     for k in range(4, -1, -1):
        ...         seen = config["tokens"] // 2**k
        ...         loss = 3 + (config["lr"] - 0.01) ** 2 + 10 * seen**-0.5
        ...         tune.report({"loss": loss, "tokens_seen": seen})
        ...
        >>> space = {"size": 1e5, "tokens": 2**16, "batch": 512, "lr": tune.grid_search([0.003, 0.01])}
        >>> results = tune.Tuner(train, **tuner_configs(param_space=space)).fit()
        >>> [d["action"] for d in decision_log(results)]
        ['launch', 'launch']
    """
    files, folder = _place(source)
    path = f"{folder}/{DECISIONS}"
    if files.get_file_info(path).type != pyarrow.fs.FileType.File:
        raise TableError(
            f"{folder} holds no decision log; a ScalingLawScheduler wired by tuner_configs keeps one"
        )
    return objects(read_text(files, path))


def _place(source: ResultGrid | str | os.PathLike[str]) -> tuple[Any, str]:
    """File system and folder of an experiment."""
    if isinstance(source, ResultGrid):
        return source.filesystem, str(source.experiment_path)
    files, folder = filesystem_of(source)
    if files.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
        raise TableError(f"there is no experiment in {folder}; give the folder <storage_path>/<name>")
    return files, folder
