"""CurveKeeper: curves and costs kept by us; and an experiment, finished or killed, as a trial table.

Tune's own dataframes lose rows when a trial is paused or retried. The keeper writes every event to a journal in
the experiment's folder, one line of JSON each, before Tune acts on it; the trial table is read from there.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow.fs  # type: ignore[import-untyped]
from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial

from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import METRIC, PROGRESS, Columns, TuneWarning
from metaopt_hpo_ray.lost import make_good
from metaopt_hpo_ray.reports import describe, outcome, report, why_failed
from metaopt_hpo_ray.state import BookError, Entry, TrialBook, header

if TYPE_CHECKING:
    from metaopt_hpo_ray.scheduler import ScalingLawScheduler

logger = logging.getLogger(__name__)

JOURNAL = "metaopt-trials.jsonl"
"""Name of the journal within the experiment's folder."""

FORGOTTEN = "the driver was killed before Tune had saved this trial, so a restore does not know it"
"""Reason of a trial that is in the journal and not in Tune's snapshot, which is seconds older."""


class CurveKeeper(Callback):
    """Keeps every trial's curve, cost and end, and the state of a `ScalingLawScheduler` through a restore.

    Curves are keyed by (trial, tokens): a step that is reported again replaces itself. Cost is the sum over
    the processes that worked at a trial, so that a retry adds to it and never takes away.

    Args:
        scheduler: the experiment's `ScalingLawScheduler`, whose state is saved and restored with the curves;
            None keeps the curves of any other scheduler.
        metric, progress: results that hold the loss and the tokens; of the scheduler where there is one.
        maximize: True where the metric is maximised; the table holds it negated.
        size, tokens, batch, lr: as `ScalingLawScheduler`; of the scheduler where there is one.
        pauses: name of a scheduler that pauses trials, to warn of a trial that reports without a checkpoint
            before it is paused; "" for one that does not.
    """

    def __init__(
        self,
        scheduler: ScalingLawScheduler | None = None,
        *,
        metric: str = METRIC,
        progress: str = PROGRESS,
        maximize: bool = False,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        pauses: str = "",
    ) -> None:
        self._scheduler = scheduler
        self._pauses = pauses
        self._metric = metric
        self._progress = progress
        self._maximize = maximize
        self._columns = Columns(size, tokens, batch, lr)
        self._own = TrialBook()
        self._path: Path | None = None
        self._file: IO[str] | None = None
        self._restored = False
        if scheduler is not None:
            scheduler.keep_with(self.open_journal)

    @property
    def book(self) -> TrialBook:
        """What is known of every trial."""
        return self._own if self._scheduler is None else self._scheduler.book

    def table(self) -> TrialTable:
        """The trials so far."""
        return TrialTable.from_records(self.book.records(maximize=self._maximize))

    # -- the journal ---------------------------------------------------------------------------------------

    def open_journal(self, storage: Any) -> None:
        """Begin the experiment's journal, or in a restored experiment go on with the one it left behind.

        A new experiment in the folder of an old one moves the old journal aside: those are not its trials.

        The journal lies in the experiment's folder where that is on this machine's file system, and else in the
        folder that Tune uploads with each of its own snapshots.
        """
        local = isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem)
        folder = Path(storage.experiment_fs_path if local else storage.experiment_driver_staging_path)
        path = folder / JOURNAL
        if path.exists():
            self._take_over(path)
        self._start(path)

    def _take_over(self, path: Path) -> None:
        if self._restored:
            try:
                # the journal is written with every result, Tune's snapshot every few seconds
                saved = TrialBook.replay(path.read_text(encoding="utf-8", errors="replace").splitlines())
                if saved.events >= self.book.events:
                    self.book.load_state(saved.to_state())
                return
            except BookError as error:
                logger.warning("%s; the trials go on from Tune's own snapshot", error)
        count = len(list(path.parent.glob(f"{path.stem}.old-*")))
        os.replace(path, path.with_name(f"{path.stem}.old-{count}.jsonl"))

    def _start(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_suffix(".tmp")
            # written anew as a snapshot: short after many restarts, and without a line cut off by a kill
            with whole.open("w", encoding="utf-8") as file:
                file.write(header() + "\n")
                file.write(json.dumps({"k": "snapshot", "state": self.book.to_state()}) + "\n")
            os.replace(whole, path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            logger.warning("no journal of the trials can be kept in %s: %s", path, error)
            self._file = None
        self._path = path
        self.book.outbox = []

    def flush(self) -> None:
        """Write what has happened since the last call."""
        waiting = self.book.outbox
        if not waiting:
            return
        self.book.outbox = []
        if self._file is None:
            return
        try:
            self._file.writelines(json.dumps(event) + "\n" for event in waiting)
            self._file.flush()
        except (OSError, ValueError) as error:
            logger.warning(
                "the journal of the trials cannot be written (%s); the search goes on without", error
            )
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    # -- Tune's hooks --------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Find the experiment's folder, with the first trial; after a restore, close what Tune has forgotten."""
        if self._path is None and trials and trials[0].storage is not None:
            self.open_journal(trials[0].storage)
        if self._restored and self._path is not None:
            self._restored = False
            known = {t.trial_id for t in trials}
            for key, entry in self.book.entries.items():
                if key not in known and not entry.closed:
                    self.book.close(key, "failed", FORGOTTEN)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write launches and decisions."""
        self.flush()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """One point of a curve."""
        if self._pauses and not _compat.latest_checkpoint(trial) and not _compat.will_checkpoint(result):
            pauses, self._pauses = self._pauses, ""
            logger.warning(
                "trial %s reports without a checkpoint, and %s pauses trials: each time Tune will silently start it "
                "again at its first step; pass checkpoint= to tune.report, or use TrialRun",
                trial.trial_id,
                pauses,
            )
        if self._scheduler is None:
            self._know(trial)
            tokens, loss = result.get(self._progress), result.get(self._metric)
            if isinstance(tokens, int | float) and isinstance(loss, int | float):
                sign = -1.0 if self._maximize else 1.0
                report(self.book, trial.trial_id, float(tokens), sign * float(loss), result)
        self.flush()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial is about to run, or to run again after a failure, a pause or a restore, from its checkpoint."""
        if self._scheduler is None:
            self._know(trial)
        entry = self.book.entries.get(trial.trial_id)
        if entry is not None:
            self._make_good(trial, entry)
        self.flush()

    def _make_good(self, trial: Trial, entry: Entry) -> None:
        try:
            done = make_good(trial, reported=bool(entry.points))
        except Exception:  # Tune's own refusal is the worse outcome, and it comes by itself
            logger.exception("the checkpoint of trial %s cannot be looked at", trial.trial_id)
            return
        if done:
            logger.warning("trial %s: %s", trial.trial_id, done)
            self.book.note(trial.trial_id, done)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended."""
        if self._scheduler is None:
            self._know(trial)
            entry = self.book.entries[trial.trial_id]
            self.book.close(trial.trial_id, *outcome(entry, trial.last_result or {}))
        self.flush()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed for good."""
        if self._scheduler is None:
            self._know(trial)
            self.book.close(trial.trial_id, "failed", why_failed(trial))
        self.flush()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Close the journal."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _know(self, trial: Trial) -> None:
        self.book.add(trial.trial_id, **describe(trial.config, self._columns))

    def get_state(self) -> dict[str, Any]:
        """For Tune's snapshot."""
        self.flush()
        if self._scheduler is not None:
            return {"scheduler": self._scheduler.get_state()}
        return {"book": self.book.to_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """From Tune's snapshot, before the trials are added anew; the journal, which is newer, is read then."""
        self._restored = True
        if self._scheduler is not None:
            self._scheduler.set_state(state["scheduler"])
        else:
            self.book.load_state(state["book"])


# -- reading an experiment -----------------------------------------------------------------------------------


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
