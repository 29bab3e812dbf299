"""An experiment, finished or killed, as a trial table: from its journal, or else from the trials' own files."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]
from ray.tune import ResultGrid

from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.columns import METRIC, PROGRESS, Columns, TuneWarning
from metaopt_hpo_ray.keeper import JOURNAL
from metaopt_hpo_ray.reports import describe, outcome, report
from metaopt_hpo_ray.state import TrialBook


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
    """All trials of an experiment that have started, as a trial table, with curves and with what they cost.

    The journal of a `CurveKeeper` is read where there is one; nothing is missing then, whatever was killed.
    Without one the trials' own JSON files are read, and a warning says that Tune may have lost rows of them.
    No pickle is opened.

    Args:
        source: what `Tuner.fit` returned, or the experiment's folder, also of a run that is still going on.
        metric, progress, maximize, size, tokens, batch, lr: as `CurveKeeper`.

    Raises:
        TableError: no experiment there, or no trial has all of size, batch and lr.
        BookError: the journal is damaged or of a newer version.
    """
    columns = Columns(size, tokens, batch, lr)
    if isinstance(source, ResultGrid):
        files, folder = source.filesystem, str(source.experiment_path)
    else:
        path = os.fspath(source)
        files, folder = (
            pyarrow.fs.FileSystem.from_uri(path)
            if "://" in path
            else (pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().resolve()))
        )
    if files.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
        raise TableError(f"there is no experiment in {folder}; give the folder <storage_path>/<name>")
    journal = f"{folder}/{JOURNAL}"
    study = Path(folder).name
    if files.get_file_info(journal).type == pyarrow.fs.FileType.File:
        book = TrialBook.replay(_text(files, journal).splitlines())
        records = book.records(study=study, maximize=maximize)
    else:
        warnings.warn(
            f"{folder} holds no journal of a CurveKeeper, so the trials' own files are read, in which Tune may "
            "have lost rows of trials that were paused or retried; use tuner_configs for the next experiment",
            TuneWarning,
            stacklevel=2,
        )
        book = _from_result_files(files, folder, columns, metric, progress, -1.0 if maximize else 1.0)
        records = book.records(study=study, maximize=maximize)
    started = [r for r in records if r.curve is not None or r.state not in ("running", "pruned")]
    if not started:
        raise TableError(
            f"no trial of {folder} has run with {columns.size!r}, {columns.batch!r} and {columns.lr!r} in its "
            "config; name the entries with size=…, batch=…, lr=…"
        )
    return TrialTable.from_records(started)


def _text(files: Any, path: str) -> str:
    with files.open_input_stream(path) as stream:
        return bytes(stream.readall()).decode("utf-8", errors="replace")


def _from_result_files(
    files: Any, folder: str, columns: Columns, metric: str, progress: str, sign: float
) -> TrialBook:
    """The book that the trials' `params.json` and `result.json` describe."""
    book = TrialBook()
    for info in files.get_file_info(pyarrow.fs.FileSelector(folder)):
        names = {"params.json", "result.json"}
        if info.type != pyarrow.fs.FileType.Directory:
            continue
        present = {i.base_name for i in files.get_file_info(pyarrow.fs.FileSelector(info.path))}
        if not names <= present:
            continue
        config = _json(_text(files, f"{info.path}/params.json"))
        key = info.base_name
        if not isinstance(config, Mapping):
            continue
        book.add(key, **describe(config, columns))
        last: dict[str, Any] = {}
        for line in _text(files, f"{info.path}/result.json").splitlines():
            row = _json(line)
            if isinstance(row, dict) and isinstance(row.get(progress), int | float):
                last = row
                report(book, key, float(row[progress]), sign * float(row.get(metric, math.nan)), row)
        if "error.txt" in present:
            book.close(key, "failed", "Tune recorded an error")
        elif last:
            book.close(key, *outcome(book.entries[key], last))
    return book


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
