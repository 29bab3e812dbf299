"""JournalCallback: Tune's callback that enters curves, costs and ends in the journal, which is the one copy of them.

Tune's own dataframes lose rows when a trial is paused or retried, and it saves no scheduler. Nothing here raises from
a hook: that would end the experiment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_results import METRIC, PROGRESS, Results, cut_off
from metaopt_hpo.trials.logged_trial import LoggedTrial
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import ENDED_BY_SCHEDULER, Columns, know, why_failed
from metaopt_hpo_ray.earlier_names import Restored
from metaopt_hpo_ray.journal import Journal, Owner, open_journal, owner_of
from metaopt_hpo_ray.metrics import Metrics
from metaopt_hpo_ray.older_checkpoints import NONE_SAVED, make_good
from metaopt_hpo_ray.storage import warn_unshared

logger = logging.getLogger(__name__)

FORGOTTEN = "the driver was killed before Tune had saved this trial, so a restore does not know it"
"""Reason of a trial that is in the journal and not in Tune's snapshot, which is seconds older."""


def _safe(hook: Callable[..., None]) -> Callable[..., None]:
    @wraps(hook)
    def safely(self: Any, *args: Any, **info: Any) -> None:
        try:
            hook(self, *args, **info)
        except Exception:
            logger.exception("JournalCallback failed in %s and lets the experiment go on", hook.__name__)

    return safely


class JournalCallback(Restored, Callback):
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
        decides: False for a scheduler that stops no trial (FIFO): then every trial that ends has ended as it was
            meant to.
        check_storage: warn, before the first trial runs, where several nodes would keep trials in a path of
            one machine.

    Examples:
        >>> from ray.tune.schedulers import ASHAScheduler
        >>> from metaopt_hpo_ray import JournalCallback
        >>> journal = JournalCallback(metric="loss", progress="tokens_seen")
    """

    def __init__(
        self,
        scheduler: Owner | None = None,
        *,
        metric: str = METRIC,
        progress: str = PROGRESS,
        maximize: bool = False,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        pauses: str = "",
        decides: bool = True,
        check_storage: bool = True,
    ) -> None:
        self._scheduler = scheduler
        self._pauses = pauses
        self._decides = decides
        self._check_storage = check_storage
        self.results = Results(metric, progress, maximize=maximize)
        """Reads what the trials report."""
        self._columns = Columns(size, tokens, batch, lr)
        self._own = Journal(Logbook())
        self._restarted: dict[str, float] = {}
        """Trial that started again without a checkpoint of Tune's → the fewest tokens it had reported before."""
        self._done: set[str] = set()
        """Trials whose last report came with `done`: a criterion, or a scheduler, has ended them."""
        self._metrics = Metrics()
        if scheduler is not None:
            scheduler.keep_with()

    @property
    def journal(self) -> Journal:
        """Where everything is kept."""
        return self._own if self._scheduler is None else self._scheduler.journal

    @property
    def book(self) -> Logbook:
        """What is known of every trial."""
        return self.journal.book

    def table(self) -> TrialTable:
        """The trials so far."""
        return TrialTable.from_records(self.book.records(maximize=self.results.maximize))

    def open_journal(self, storage: Any, trials: list[Trial] | None = None) -> None:
        """Begin the experiment's journal, or in a restored experiment go on with the one it left behind."""
        self._check(storage)
        if not self.journal.is_open:
            ids = [t.trial_id for t in trials or ()]
            open_journal(self.journal, storage, ids, self._columns, self.results)

    def flush(self) -> None:
        """Write what has happened since the last call."""
        self.journal.flush()

    def _check(self, storage: Any) -> None:
        if self._check_storage:
            self._check_storage = False
            warn_unshared(str(storage.experiment_fs_path), storage.storage_filesystem)

    def _find(self, trials: list[Trial]) -> None:
        """Open the journal with the first trial; where the scheduler was pickled apart, find the one that runs."""
        storage = next((t.storage for t in trials if t.storage is not None), None)
        if storage is None:
            return
        if self._scheduler is not None:
            self._scheduler = owner_of(storage, self._scheduler)
        self._check(storage)
        if not self.journal.is_open:
            self.open_journal(storage, trials)

    # -- Tune's hooks --------------------------------------------------------------------------------------

    @_safe
    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Find the experiment's folder, with the first trial; after a restore, close what Tune has forgotten."""
        if not self.journal.is_open or not iteration:
            self._find(trials)
        if self.journal.resumed:
            self.journal.resumed = False
            known = {t.trial_id for t in trials}
            for key, entry in self.book.entries.items():
                if key not in known and not entry.closed:
                    self.book.close(key, "failed", FORGOTTEN)
            for trial in trials if self._scheduler is None else ():
                know(self.book, trial, self._columns)
                if trial.status == Trial.TERMINATED and not self.book.entries[trial.trial_id].closed:
                    self._end(trial)

    @_safe
    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write launches and decisions."""
        self.flush()
        self._metrics.update(self.book)

    @_safe
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """One point of a curve."""
        self._find([trial])
        if self._pauses and not _compat.latest_checkpoint(trial) and not _compat.will_checkpoint(result):
            pauses, self._pauses = self._pauses, ""
            logger.warning(
                "trial %s reports without a checkpoint, and %s pauses trials: each time Tune will silently start it "
                "again at its first step; pass checkpoint= to tune.report, or use TrialRun",
                trial.trial_id,
                pauses,
            )
        if self._scheduler is None:
            know(self.book, trial, self._columns)
            if self.book.entries[trial.trial_id].state in ("running", "failed"):
                self.results.enter(self.book, trial.trial_id, result)
            if result.get("done"):
                self._done.add(trial.trial_id)
        self._say_where_it_went_on(trial)
        self.flush()

    def _say_where_it_went_on(self, trial: Trial) -> None:
        """A trial of Ray Train goes on from Train's checkpoints, which Tune does not know: its report says whether."""
        first = self._restarted.pop(trial.trial_id, None)
        entry = self.book.entries.get(trial.trial_id)
        if first is not None and entry is not None and entry.last[0] <= first:
            self.book.note(trial.trial_id, NONE_SAVED)
            logger.warning("trial %s: %s", trial.trial_id, NONE_SAVED)

    @_safe
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial is about to run, or to run again after a failure, a pause or a restore, from its checkpoint."""
        self._find([trial])
        if self._scheduler is None:
            know(self.book, trial, self._columns)
            self.book.launch(trial.trial_id)
        entry = self.book.entries.get(trial.trial_id)
        if entry is not None:
            self._make_good(trial, entry)
        self.flush()

    def _make_good(self, trial: Trial, entry: LoggedTrial) -> None:
        if _compat.latest_checkpoint(trial) is None:
            if entry.points:
                self._restarted[trial.trial_id] = min(entry.points)
            return
        if done := make_good(trial):
            logger.warning("trial %s: %s", trial.trial_id, done)
            self.book.note(trial.trial_id, done)

    @_safe
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended."""
        self._find([trial])
        if self._scheduler is None:
            know(self.book, trial, self._columns)
            self._end(trial)
        self.flush()

    def _end(self, trial: Trial) -> None:
        key, result = trial.trial_id, trial.last_result or {}
        done = key in self._done or _compat.stopped_as_it_waited(trial)
        self._done.discard(key)
        met = done and (not self._decides or _compat.met_criterion(trial, result))
        by_other = ENDED_BY_SCHEDULER if done and self._decides else ""
        self.results.close(self.book, key, result, as_meant=met, ended_by=by_other)

    @_safe
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed for good."""
        self._find([trial])
        if self._scheduler is None:
            know(self.book, trial, self._columns)
            self.book.close(trial.trial_id, "failed", why_failed(trial))
        self.flush()

    @_safe
    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Close what the experiment's end has cut off, of which Tune tells nobody, and the journal."""
        cut_off(self.book)
        if self._scheduler is not None:
            self._scheduler.finish()
        self.flush()
        self._metrics.update(self.book, now=True)
        self.journal.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.results.maximize |= state.get("_maximize", False)  # where earlier versions kept it

    def get_state(self) -> dict[str, Any]:
        """For Tune's snapshot: where the journal is."""
        self.journal.flush()
        return {"owner": self.journal.state() if self._scheduler is None else self._scheduler.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """From Tune's snapshot, before the trials are added anew; the journal, which is newer, is read then.

        Whatever is wrong with it, the journal has what is needed; and Tune restores no trial at all where this raises.
        """
        self.journal.restored = True
        try:
            old = state.get("scheduler") or state.get("book") or state.get("owner")
            if self._scheduler is not None:
                self._scheduler.set_state(old)
            else:
                self._own.load_state(old)
        except Exception as error:
            logger.warning(
                "Tune's snapshot of the trials is of no use (%s); they come from the journal", error
            )
