"""CurveKeeper: curves and costs kept by us, in a journal in the experiment's folder.

Tune's own dataframes lose rows when a trial is paused or retried. The keeper writes every event, one line of JSON
each, before Tune acts on it; the trial table is read from there.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow.fs  # type: ignore[import-untyped]
from ray.tune import Callback
from ray.tune.experiment import Trial

from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import METRIC, PROGRESS, Columns
from metaopt_hpo_ray.entry import Entry
from metaopt_hpo_ray.lost import make_good
from metaopt_hpo_ray.reports import describe, outcome, report, why_failed
from metaopt_hpo_ray.state import BookError, TrialBook, header
from metaopt_hpo_ray.storage import warn_unshared

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
        check_storage: warn, before the first trial runs, where several nodes would keep trials in a path of
            one machine.
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
        check_storage: bool = True,
    ) -> None:
        self._scheduler = scheduler
        self._pauses = pauses
        self._check_storage = check_storage
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
        if local and self._check_storage:
            self._check_storage = False
            warn_unshared(storage.experiment_fs_path)
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
